"""Probes of task inference that need no simulator: the reward-swap test and the posteriors of own contexts."""

from __future__ import annotations

import torch
from torch import Tensor

from mbml.context import Gaussian, kl_divergence, set_posterior
from mbml.policy import Student
from mbml.rows import RowLayout, gather_rows, sample_indices


@torch.no_grad()
def own_posteriors(
    student: Student, rows: Tensor, layout: RowLayout, size: int, contexts: int, generator: torch.Generator
) -> Gaussian:
    """Posteriors `[K, contexts, Z]` of random contexts of `size` own transitions, from rows `[K, P, row]`."""
    tasks = rows.shape[0]
    indices = sample_indices(tasks, contexts * size, rows.shape[1], generator)
    factors = student.encoder(layout.context(gather_rows(rows, indices)))
    sets = type(factors)(*(f.unflatten(1, (contexts, size)) for f in factors))
    return set_posterior(sets)


@torch.no_grad()
def reward_swap(
    student: Student,
    rows: Tensor,
    truth: Tensor,
    layout: RowLayout,
    generator: torch.Generator,
    *,
    size: int = 128,
    repeats: int = 4,
) -> dict[str, float]:
    """Give the encoder task j's transitions with task i's true rewards: does the posterior follow i or j?

    `rows` `[K, P, row]`; `truth` `[K, K, P]`: reward for task i (first axis) of row t of task j. A context counts for
    the training task whose own posterior is nearest, in KL(context || own). Shares over all ordered pairs and repeats;
    `own_identified` is the share of own contexts that are nearest to their own task.
    """
    tasks = rows.shape[0]
    known = own_posteriors(student, rows, layout, size, 1, generator)
    known = Gaussian(known.mean[:, 0], known.variance[:, 0])
    everyone = torch.arange(tasks)
    follows_reward = follows_source = own = 0.0
    for _ in range(repeats):
        indices = sample_indices(tasks, size, rows.shape[1], generator)
        context = layout.context(gather_rows(rows, indices)).unsqueeze(0).repeat(tasks, 1, 1, 1)
        context[..., -1] = truth[:, everyone.unsqueeze(1), indices]
        swapped = set_posterior(student.encoder(context))
        divergence = kl_divergence(
            Gaussian(swapped.mean.unsqueeze(2), swapped.variance.unsqueeze(2)),
            Gaussian(known.mean.expand(1, 1, -1, -1), known.variance.expand(1, 1, -1, -1)),
        )
        nearest = divergence.argmin(-1)
        off_diagonal = ~torch.eye(tasks, dtype=torch.bool)
        follows_reward += float((nearest == everyone.unsqueeze(1))[off_diagonal].float().mean())
        follows_source += float((nearest == everyone.unsqueeze(0))[off_diagonal].float().mean())
        own += float((nearest.diagonal() == everyone).float().mean())
    reward, source = follows_reward / repeats, follows_source / repeats
    return {
        "follows_reward": reward,
        "follows_state_action": source,
        "other": 1.0 - reward - source,
        "own_identified": own / repeats,
        "pairs": tasks * (tasks - 1),
    }
