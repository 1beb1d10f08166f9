"""Losses of multi-task distillation and of task inference, named after the paper's equations."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mbml.context import Gaussian, kl_divergence, kl_to_prior


class TripletLoss(NamedTuple):
    """Value to differentiate, the mean over pairs that have eligible rows, and the share of such pairs."""

    loss: Tensor
    loss_valid: Tensor
    valid_share: Tensor


def relabelled_triplet_loss(
    anchor: Gaussian, positive: Gaussian, negative: Gaussian, valid: Tensor, margin: float
) -> TripletLoss:
    """Eq. 8 and 9: pull relabelled contexts to the task whose reward they carry, push them from where they came.

    `anchor`, `positive`, `negative` are posteriors `[K, P, Z]` for pairs (i, j): c_j relabelled for task i, a subset
    of c_i of the same size, and the same rows of c_j with their own labels. The anchor is the first argument of both
    divergences. A pair without eligible rows (`valid` false) contributes the constant margin and still counts in the
    denominator, as in the authors' code (C6).
    """
    difference = kl_divergence(anchor, positive) - kl_divergence(anchor, negative)
    # `where`, not a product: an empty pair must not turn an overflow into NaN.
    per_pair = torch.relu(torch.where(valid, difference, torch.zeros_like(difference)) + margin)
    count = valid.sum().clamp_min(1)
    loss_valid = (per_pair.detach() * valid).sum() / count
    return TripletLoss(per_pair.mean(), loss_valid, valid.float().mean())


def hard_mining_triplet_loss(contexts: Gaussian, margin: float, *, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Eq. 11: hardest positive and hardest negative among N contexts of each of K tasks, posteriors `[K, N, Z]`.

    Every context is an anchor, with a ReLU; "sum" over the K*N anchors is the authors' code, "mean" the paper's
    average (C9).
    """
    tasks, number = contexts.mean.shape[:2]
    flat = Gaussian(contexts.mean.flatten(0, 1), contexts.variance.flatten(0, 1))
    anchor = Gaussian(flat.mean.unsqueeze(1), flat.variance.unsqueeze(1))
    other = Gaussian(flat.mean.unsqueeze(0), flat.variance.unsqueeze(0))
    divergence = kl_divergence(anchor, other)
    task = torch.arange(tasks, device=divergence.device).repeat_interleave(number)
    same = task.unsqueeze(0) == task.unsqueeze(1)
    hardest_positive = divergence.masked_fill(~same, -torch.inf).amax(1)
    hardest_negative = divergence.masked_fill(same, torch.inf).amin(1)
    per_anchor = torch.relu(hardest_positive - hardest_negative + margin)
    return per_anchor.sum() if reduction == "sum" else per_anchor.mean()


def value_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of Q_D against the teachers' first critic (Eq. 3), mean over tasks and rows; both `[K, B, 1]`."""
    return (student - teacher).square().mean()


def action_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error of G_D (Eq. 4) or xi_D (Eq. 5), mean over tasks, rows and action dimensions (C3)."""
    return (student - teacher).square().mean()


def posterior_regulariser(q: Gaussian, weight: float) -> Tensor:
    """beta * KL(q || N(0, I)) **summed** over tasks and embedding dimensions (Eq. 3, reading C1); q is `[K, Z]`."""
    return weight * kl_to_prior(q).sum()
