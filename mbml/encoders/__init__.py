"""Task inference: from transitions to a belief over the task embedding z. One file and one line here per encoder."""

from __future__ import annotations

import torch

from mbml.encoders import mean, product
from mbml.encoders.contract import Belief, Encoder, EncoderConfig
from mbml.registry import Entry, Registry

__all__ = ["ENCODERS", "Belief", "Encoder", "EncoderConfig", "make_encoder"]

ENCODERS: Registry[Entry] = Registry("encoder", product.ENTRY, mean.ENTRY)


def make_encoder(context_size: int, config: EncoderConfig, generator: torch.Generator) -> Encoder:
    """The encoder that `config` names, for context transitions `[..., context_size]`, on the generator's device."""
    return ENCODERS[config.kind].make(context_size, config, generator)
