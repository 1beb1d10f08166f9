"""A deterministic encoder: the mean of bounded embeddings of the transitions (as in FOCAL's successors)."""

from __future__ import annotations

import torch
from torch import Tensor

from mbml.encoders.contract import Belief, Encoder
from mbml.registry import Entry


class MeanEmbedding(Encoder):
    """Statistics are (embedding, 1); beliefs have variance 0, and nothing seen is the zero vector.

    The tanh bounds the squared distances of the triplet losses, which have no regulariser here.
    """

    outputs_per_dimension = 1

    @property
    def statistics_size(self) -> int:
        """Summed embeddings and their number."""
        return self.embedding_size + 1

    def statistics(self, context: Tensor) -> Tensor:
        """Embedding in (-1, 1) and the number 1, `[..., Z + 1]`."""
        embedding = torch.tanh(self.outputs(context))
        return torch.cat([embedding, torch.ones_like(embedding[..., :1])], -1)

    def belief(self, statistics: Tensor) -> Belief:
        """The mean embedding, for certain."""
        mean = statistics[..., :-1] / statistics[..., -1:].clamp_min(1.0)
        return Belief(mean, torch.zeros_like(mean))

    def divergence(self, a: Belief, b: Belief) -> Tensor:
        """Squared Euclidean distance of the means."""
        return (a.mean - b.mean).square().sum(-1)

    def regulariser(self, belief: Belief) -> Tensor:
        """0: the embedding is bounded already."""
        return torch.zeros_like(belief.mean[..., 0])


ENTRY = Entry("mean", "deterministic mean of bounded embeddings", MeanEmbedding)
