"""Losses of multi-task distillation and of task inference: a function for each equation of the paper, named after it.

Eq. 1 is BCQ's target (`mbml.teachers.bcq.CandidateNetworks.td_target`), Eq. 7 is the relabelling
(`mbml.relabel.RelabelTables.relabelled`).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mbml.encoders import Belief, Encoder


def value_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Eq. 3, first term: squared error of Q_D against the teachers' values, both `[K, B, 1]`, over tasks and rows."""
    return (student - teacher).square().mean()


def posterior_regulariser(encoder: Encoder, belief: Belief, weight: float) -> Tensor:
    """Eq. 3, second term: beta * KL(q || N(0, I)) of beliefs `[K, Z]`, **summed** over tasks and dimensions.

    The sum is the authors' code; the paper averages over the tasks.
    """
    return weight * encoder.regulariser(belief).sum()


def generator_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Eq. 4: squared error of G_D's actions `[K, B, d_a]` for the same latents.

    A mean over dimensions too, as in the authors' code; the paper adds them up. So it is in Eq. 5.
    """
    return (student - teacher).square().mean()


def perturbation_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Eq. 5: squared error of xi_D's raw outputs `[K, B, d_a]` for the same actions."""
    return (student - teacher).square().mean()


def acting_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """In place of Eq. 4 and 5, for a student that imitates what teachers do: squared error of actions `[K, B, d_a]`."""
    return (student - teacher).square().mean()


def distillation_objective(losses: Mapping[str, Tensor]) -> Tensor:
    """Eq. 6: the sum of the terms of Eq. 3, 4 and 5. Their parameters are disjoint: one backward serves all."""
    return torch.stack(list(losses.values())).sum()


class Triplets(NamedTuple):
    """Three beliefs `[K, P, Z]` for pairs of tasks (i, j), and which pairs `[K, P]` have any relabelled transition."""

    anchor: Belief
    """Of c_j relabelled for task i."""
    positive: Belief
    """Of as many of c_i."""
    negative: Belief
    """Of c_j as it was."""
    valid: Tensor


def pair_triplet_losses(encoder: Encoder, triplets: Triplets, margin: float) -> Tensor:
    """Eq. 8: pull relabelled contexts to the task whose reward they carry, push them from where they came; `[K, P]`.

    The anchor is the first argument of both divergences. A pair without relabelled transitions gives the constant
    margin, as in the authors' code.
    """
    pull = encoder.divergence(triplets.anchor, triplets.positive)
    push = encoder.divergence(triplets.anchor, triplets.negative)
    # `where`, not a product: an empty pair must not turn an overflow into NaN.
    return torch.relu(torch.where(triplets.valid, pull - push, torch.zeros_like(pull)) + margin)


def triplet_loss(per_pair: Tensor) -> Tensor:
    """Eq. 9: mean of Eq. 8 over tasks i and their partners j. Pairs of constant loss count in the denominator."""
    return per_pair.mean()


def full_objective(distillation: Tensor, triplet: Tensor, weight: float) -> Tensor:
    """Eq. 10: Eq. 6 and the triplet loss; the paper's weight is 1."""
    return distillation + weight * triplet


def hard_mining_triplet_loss(
    encoder: Encoder, contexts: Belief, margin: float, *, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Eq. 11: hardest positive and hardest negative among N contexts of each of K tasks, beliefs `[K, N, Z]`.

    Every context is an anchor, with a ReLU; "sum" over the K*N anchors is the authors' code, "mean" the paper.
    """
    tasks, number = contexts.mean.shape[:2]
    mean, variance = (part.flatten(0, 1) for part in contexts)
    anchor, other = (Belief(mean.unsqueeze(d), variance.unsqueeze(d)) for d in (1, 0))
    divergence = encoder.divergence(anchor, other)
    task = torch.arange(tasks, device=divergence.device).repeat_interleave(number)
    same = task.unsqueeze(0) == task.unsqueeze(1)
    hardest_positive = divergence.masked_fill(~same, -torch.inf).amax(1)
    hardest_negative = divergence.masked_fill(same, torch.inf).amin(1)
    per_anchor = torch.relu(hardest_positive - hardest_negative + margin)
    return per_anchor.sum() if reduction == "sum" else per_anchor.mean()
