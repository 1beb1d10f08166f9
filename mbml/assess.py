"""How good a policy is where nothing can be played: what logged transitions can say of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from mbml.encoders import Belief
from mbml.policy import ContextPolicy
from mbml.probes import nearest_known
from mbml.settings import Count, Share
from mbml.transitions import TransitionBatch

_BLOCKS = 50


@dataclass(frozen=True)
class AssessConfig:
    """What is kept from learning, and what is asked of the policy."""

    held_episodes: Share = 0.1
    """Share of every training task's episodes, its last ones, that nothing learns from."""
    transitions: tuple[Count, ...] = (1, 5, 20, 100)
    """Tasks are identified from so many successive transitions; the last number is also what the policy has seen of a
    held-out task when it is judged there."""
    contexts: Count = 16
    """Stretches of each task and length that a task is identified from."""
    swapped_tasks: Count = 16
    """Training tasks at most, evenly spread, in the reward-swap test."""


def under(policy: ContextPolicy, context: Tensor | None, generator: Generator) -> Callable[[Tensor], Tensor]:
    """The policy as a function of observations `[n, d_s]` after the transitions `[k, d_c]`, which it learns nothing
    beyond; None: with nothing seen."""
    seen = torch.zeros(0, policy.layout.context_size) if context is None else context
    with torch.no_grad():
        z = policy.encoder.infer(seen).mean
    return lambda observation: policy.act(observation, z.expand(len(observation), -1), generator)


def action_difference(first: Tensor, second: Tensor) -> float:
    """Mean squared difference of actions `[n, d_a]`, which go from -1 to 1."""
    return float((first - second).square().mean())


@torch.no_grad()
def identified(
    policy: ContextPolicy, known: Belief, held: Sequence[Tensor], count: int, contexts: int, generator: Generator
) -> float:
    """Share of stretches of `count` successive transitions whose belief is nearest to that of their own task.

    `known` `[K, Z]` are beliefs of all training tasks; `held` are rows `[n, row]` of each that nothing learned from.
    Tasks with fewer than `count` have no part; NaN where that is all of them.
    """
    right = []
    for task, rows in enumerate(held):
        if len(rows) < count:
            continue
        start = torch.randint(len(rows) - count + 1, (contexts, 1), generator=generator)
        stretches = policy.layout.context(rows)[start + torch.arange(count)]
        right.append((nearest_known(policy.encoder, policy.encoder.infer(stretches), known) == task).float().mean())
    return float(torch.stack(right).mean()) if right else float("nan")


def next_actions(batch: TransitionBatch) -> np.ndarray:
    """What was done next `[N, d_a]`; where the record is cut, the same once more."""
    follows = np.append(batch.episode[1:] == batch.episode[:-1], False)
    return np.where(follows[:, None], np.roll(batch.action, -1, 0), batch.action)


def by_blocks(values: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Means `[B, P]` of values `[N, P]` over blocks of successive episodes, 50 at most: what a bootstrap draws."""
    _, number = np.unique(episode, return_inverse=True)
    block = number * min(int(number.max()) + 1, _BLOCKS) // (int(number.max()) + 1)
    return np.stack([values[block == one].mean(0) for one in range(int(block.max()) + 1)])
