"""Task inference: from transitions to a belief over the task embedding z. One file and one line here per encoder."""

from __future__ import annotations

import torch

from mbml.encoders.base import Belief, Encoder, EncoderConfig
from mbml.encoders.mean import MeanEmbedding
from mbml.encoders.product import ProductOfGaussians
from mbml.registry import Entry, Registry

ENCODERS: Registry[Entry] = Registry(
    "encoder",
    Entry("product", "product of Gaussian factors, as in the paper", ProductOfGaussians, title="product of Gaussians"),
    Entry("mean", "deterministic mean of bounded embeddings", MeanEmbedding, title="mean embedding"),
)


def make_encoder(context_size: int, config: EncoderConfig, generator: torch.Generator) -> Encoder:
    """The encoder that `config` names, for context transitions `[..., context_size]`, on the generator's device."""
    return ENCODERS[config.kind].make(context_size, config, generator)


__all__ = ["ENCODERS", "Belief", "Encoder", "EncoderConfig", "make_encoder"]
