"""Task inference: context encoder, product of Gaussians, divergence between diagonal Gaussians (paper, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbml.nets import StackedMLP

VARIANCE_FLOOR = 1e-7


class Factors(NamedTuple):
    """Gaussian factors of single transitions in natural parameters, each `[..., Z]`.

    They add up under a product of Gaussians, so the posterior of any set is a masked sum of them.
    """

    precision: Tensor
    precision_mean: Tensor


class Gaussian(NamedTuple):
    """Diagonal Gaussian over the task embedding z, mean and variance `[..., Z]`."""

    mean: Tensor
    variance: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Reparameterised draw z = mean + sqrt(variance) * eps, `[..., Z]`."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.variance.sqrt() * noise


class ContextEncoder(nn.Module):
    """q_phi: one Gaussian factor per context transition `[s, a, s', r]` (specification, section 0.5)."""

    def __init__(
        self, context_size: int, hidden: Sequence[int], embedding_size: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.body = StackedMLP(1, [context_size, *hidden, 2 * embedding_size], generator=generator)

    def forward(self, context: Tensor) -> Factors:
        """Encode transitions `[..., d_c]` into factors `[..., Z]`."""
        output = self.body(context.reshape(1, -1, context.shape[-1])).view(*context.shape[:-1], -1)
        mean, raw = output.split(self.embedding_size, dim=-1)
        precision = 1.0 / F.softplus(raw).clamp_min(VARIANCE_FLOOR)
        return Factors(precision, precision * mean)


def posterior(precision: Tensor, precision_mean: Tensor) -> Gaussian:
    """Product of Gaussians from summed natural parameters `[..., Z]`; an empty set (precision 0) gives N(0, 1)."""
    precision = torch.where(precision == 0, torch.ones_like(precision), precision)
    variance = 1.0 / precision
    return Gaussian(variance * precision_mean, variance)


def set_posterior(factors: Factors, mask: Tensor | None = None) -> Gaussian:
    """Posterior of each set: factors `[..., n, Z]`, 0/1 mask `[..., n]` of the members that count."""
    precision, precision_mean = factors
    if mask is not None:
        weight = mask.to(precision.dtype).unsqueeze(-1)
        precision, precision_mean = precision * weight, precision_mean * weight
    return posterior(precision.sum(-2), precision_mean.sum(-2))


def kl_divergence(a: Gaussian, b: Gaussian) -> Tensor:
    """KL(a || b) summed over the embedding, `[...]` (logarithms are summed, so 20 dimensions cannot overflow)."""
    ratio = a.variance / b.variance
    return 0.5 * (ratio - ratio.log() - 1.0 + (a.mean - b.mean).square() / b.variance).sum(-1)


def kl_to_prior(q: Gaussian) -> Tensor:
    """KL(q || N(0, I)) summed over the embedding, `[...]`."""
    return 0.5 * (q.variance - q.variance.log() - 1.0 + q.mean.square()).sum(-1)
