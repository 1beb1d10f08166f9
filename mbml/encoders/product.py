"""The paper's encoder: a Gaussian factor per transition, whose product is the posterior (paper, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbml.encoders.contract import Belief, Encoder
from mbml.registry import Entry

VARIANCE_FLOOR = 1e-7


class ProductOfGaussians(Encoder):
    """Statistics are the natural parameters (precision, precision times mean), which add up under a product.

    The prior N(0, I) is not a factor; it is the belief given an empty set.
    """

    outputs_per_dimension = 2

    @property
    def statistics_size(self) -> int:
        """Precision and precision times mean."""
        return 2 * self.embedding_size

    def statistics(self, context: Tensor) -> Tensor:
        """Natural parameters `[..., 2Z]`; the variance of a factor is at least 1e-7."""
        mean, raw = self.outputs(context).chunk(2, dim=-1)
        precision = 1.0 / F.softplus(raw).clamp_min(VARIANCE_FLOOR)
        return torch.cat([precision, precision * mean], -1)

    def belief(self, statistics: Tensor) -> Belief:
        """Product of Gaussians of summed natural parameters; N(0, 1) where the precision is 0."""
        precision, precision_mean = statistics.chunk(2, dim=-1)
        variance = 1.0 / torch.where(precision == 0, torch.ones_like(precision), precision)
        return Belief(variance * precision_mean, variance)

    def divergence(self, a: Belief, b: Belief) -> Tensor:
        """KL(a || b) of diagonal Gaussians; logarithms are summed, so 20 dimensions cannot overflow."""
        ratio = a.variance / b.variance
        return 0.5 * (ratio - ratio.log() - 1.0 + (a.mean - b.mean).square() / b.variance).sum(-1)

    def regulariser(self, belief: Belief) -> Tensor:
        """KL(belief || N(0, I))."""
        return 0.5 * (belief.variance - belief.variance.log() - 1.0 + belief.mean.square()).sum(-1)


ENTRY = Entry("product", "product of Gaussian factors, as in the paper", ProductOfGaussians)
