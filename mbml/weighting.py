"""Batches in which the episodes of a task that went well are drawn more often, so that a teacher that stays near its
data stays near the better part of them (trajectory weighting: Hong et al. 2023)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mbml.rows import Rows, gather_rows, lengths_of
from mbml.transitions import TransitionBatch


def episode_weights(shards: Sequence[TransitionBatch], weight: float) -> Tensor:
    """Weights `[N]` (float64), 1 on average, of one task's rows: in proportion to `exp(weight * R)`, R the undiscounted
    return of the row's episode, scaled to 0 for the task's lowest and 1 for its highest."""
    episode, reward = (np.concatenate([getattr(part, name) for part in shards]) for name in ("episode", "reward"))
    episode = np.unique(episode, return_inverse=True)[1]
    returns = np.bincount(episode, reward.astype(np.float64))
    drawn = np.exp(weight * ((returns - returns.max()) / (np.ptp(returns) or 1.0)))[episode]
    return torch.from_numpy(drawn / drawn.mean())


def weighted_batches(
    rows: Rows, weights: Tensor, batch_size: int, generator: torch.Generator
) -> Callable[[], tuple[Tensor]]:
    """A function that draws rows `[T, batch_size, row]` with replacement from those of T tasks, each row in proportion
    to its weight among its task's; `weights` `[sum of lengths]` stand task after task."""
    lengths = lengths_of(rows)
    shares = [own.cumsum(0) / own.sum() for own in weights.split(lengths.each)]
    ends = torch.cat([task + share for task, share in enumerate(shares)]).to(generator.device)
    task = torch.arange(len(shares), device=generator.device).unsqueeze(1)
    starts, last = lengths.starts.unsqueeze(1), torch.tensor(lengths.each, device=generator.device).unsqueeze(1) - 1

    def draw() -> tuple[Tensor]:
        drawn = torch.rand(len(shares), batch_size, generator=generator, dtype=torch.float64, device=generator.device)
        found = torch.searchsorted(ends, task + drawn, right=True) - starts
        return (gather_rows(rows, found.clamp(min=0).minimum(last)),)  # a task's last share may round to above 1

    return draw
