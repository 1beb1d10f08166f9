"""What every context encoder does: transitions to statistics that add up, statistics to a belief over the task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mbml.nets import StackedMLP
from mbml.settings import Count, Widths


class Belief(NamedTuple):
    """What is believed of the task embedding z: mean and variance of each dimension, `[..., Z]`."""

    mean: Tensor
    variance: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Reparameterised draw z = mean + sqrt(variance) * eps, `[..., Z]`."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.variance.sqrt() * noise


@dataclass(frozen=True)
class EncoderConfig:
    """Which context encoder q_phi, and its shapes; the defaults are the authors' (paper, section 4)."""

    kind: str = "product"
    """One of `mbml.encoders.ENCODERS`."""
    hidden: Widths = (200, 200, 200)
    """Widths of its network."""
    embedding_size: Count = 20
    """Size Z of the task embedding."""

    def __post_init__(self) -> None:
        from mbml.encoders import ENCODERS  # here, because its entries are built on this module

        ENCODERS[self.kind]


class Encoder(nn.Module, ABC):
    """A network that sees each context transition `[s, a, s', r]` alone; a set is the sum of its members' statistics.

    So one pass serves every set that a transition is in, and a belief can grow by one transition at a time.
    """

    outputs_per_dimension: int
    """Outputs of the network for each dimension of z."""

    def __init__(self, context_size: int, config: EncoderConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding_size = config.embedding_size
        outputs = self.outputs_per_dimension * config.embedding_size
        self.body = StackedMLP(1, [context_size, *config.hidden, outputs], generator=generator)

    def outputs(self, context: Tensor) -> Tensor:
        """Outputs of the network `[..., n, outputs]` for transitions `[..., n, d_c]`."""
        outputs = self.body(context.flatten(0, -2).unsqueeze(0))
        return outputs.view(*context.shape[:-1], outputs.shape[-1])

    @property
    @abstractmethod
    def statistics_size(self) -> int:
        """Size S of a set's statistics."""

    @abstractmethod
    def statistics(self, context: Tensor) -> Tensor:
        """Statistics `[..., n, S]` of single transitions `[..., n, d_c]`; those of a set are their (masked) sum."""

    @abstractmethod
    def belief(self, statistics: Tensor) -> Belief:
        """Belief `[..., Z]` given the sets that have `statistics` `[..., S]`; where they are 0, nothing was seen."""

    @abstractmethod
    def divergence(self, a: Belief, b: Belief) -> Tensor:
        """How far `a` is from `b`, `[...]`, as the triplet losses measure it; need not be symmetric."""

    @abstractmethod
    def regulariser(self, belief: Belief) -> Tensor:
        """How far each belief is from what is believed when nothing was seen, `[...]` (second term of Eq. 3)."""

    def infer(self, context: Tensor) -> Belief:
        """Beliefs `[..., Z]` given sets of transitions `[..., n, d_c]`."""
        return self.belief(self.statistics(context).sum(-2))
