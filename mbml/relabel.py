"""Relabelling tables: what every transition would have earned in every other task (paper, section 4; Eq. 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mbml.envs import Reward, Task
from mbml.models import Ensemble, Target, spread
from mbml.rows import RowLayout, Rows, gather_rows
from mbml.settings import NotNegative, Whole

_CHUNK = 4096
Source = Literal["ensemble", "ground_truth"]


@dataclass(frozen=True)
class RelabelConfig:
    """Who may be relabelled, and how."""

    reward_threshold: NotNegative = 0.1
    """A transition is eligible where the reward ensemble's standard deviation is below this (reward units)."""
    next_observation_threshold: NotNegative = 0.2
    """The same for the next-state ensemble; used only where the dynamics vary."""
    pool: Whole = 0
    """Random transitions per task that contexts are drawn from; 0 takes all of them."""
    source: Source = "ensemble"
    """Labels of the reward ensembles, or the true reward with everything eligible."""


@dataclass(frozen=True)
class RelabelTables:
    """Labels of the pooled transitions of task j for task i.

    `index` `[K, P]` int64: which rows of task j are in the pool. `reward` `[K, K, P]`: label for task i (first axis) of
    row t of task j. `eligible` `[K, K, P]` bool, false for i = j. `next_observation` `[K, K, P, d_s]` or None.
    """

    index: Tensor
    reward: Tensor
    eligible: Tensor
    next_observation: Tensor | None = None

    def relabelled(self, layout: RowLayout, contexts: Tensor, i: Tensor, j: Tensor, t: Tensor) -> Tensor:
        """Eq. 7: transitions `contexts` `[n, d_c]` of tasks `j` `[n]`, which are at `t` `[n]` of their pools, with the
        labels of tasks `i` `[n]`.

        Where dynamics vary, the next observation is replaced as well as the reward (authors' code).
        """
        pair = layout.pair(contexts)
        if self.next_observation is None:
            following = contexts[:, layout.pair_size : -1]
        else:
            following = self.next_observation[i, j, t]
        return torch.cat([pair, following, self.reward[i, j, t].unsqueeze(1)], 1)

    def tensors(self) -> dict[str, Tensor]:
        """The tables by name, for storage."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def to(self, device: torch.device | str) -> RelabelTables:
        """The same tables on `device`."""
        return RelabelTables(**{name: value.to(device) for name, value in self.tensors().items()})


def pool_indices(tasks: int, available: int, pool: int, generator: torch.Generator) -> Tensor:
    """Row numbers of the relabelling pool, `[tasks, P]`, sorted, without replacement; all rows when `pool` is 0."""
    if pool <= 0 or pool >= available:
        return torch.arange(available).repeat(tasks, 1)
    draws = [torch.randperm(available, generator=generator)[:pool].sort().values for _ in range(tasks)]
    return torch.stack(draws)


def relabel(
    rows: Rows,
    index: Tensor,
    layout: RowLayout,
    models: Mapping[Target, Ensemble],
    config: RelabelConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> RelabelTables:
    """Apply every task's ensembles to every task's rows `[K, N, row]` at the pool's `index` `[K, P]`; once, before any
    distillation.

    `models` are the reward ensembles and, where the dynamics vary, the next-state ones: a transition is eligible where
    all of them are certain. `report` hears how many tasks' rows are done, of how many.
    """
    tasks, pool = index.shape
    thresholds = {"reward": config.reward_threshold, "next_observation": config.next_observation_threshold}
    labels = {target: torch.empty(tasks, tasks, pool, model.network.sizes[-1]) for target, model in models.items()}
    eligible = torch.ones(tasks, tasks, pool, dtype=torch.bool)
    for source, part, chunk in _chunks(rows, index):
        pair = layout.pair(chunk).expand(tasks, -1, -1)
        for target, model in models.items():
            labels[target][:, source, part], uncertainty = model.mean_and_std(pair)
            eligible[:, source, part] &= uncertainty < thresholds[target]
        if part.stop == pool:
            report(source + 1, tasks)
    own = torch.arange(tasks)
    eligible[own, own] = False
    return RelabelTables(index, labels["reward"].squeeze(-1), eligible, labels.get("next_observation"))


def _chunks(rows: Rows, index: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """Each task in turn with a part of its pool and the rows there `[1, n, row]`; never the whole pool in memory."""
    tasks, pool = index.shape
    for task in range(tasks):
        for start in range(0, pool, _CHUNK):
            part = slice(start, min(start + _CHUNK, pool))
            yield task, part, gather_rows(rows, index[task : task + 1, part], torch.tensor([task]))


def relabel_with_truth(index: Tensor, true_reward: Tensor) -> RelabelTables:
    """Tables of the `ground_truth` ablation: true rewards `[K, K, P]`, every cross-task row eligible."""
    tasks, pool = index.shape
    eligible = ~torch.eye(tasks, dtype=torch.bool).unsqueeze(-1).expand(-1, -1, pool).clone()
    return RelabelTables(index, true_reward, eligible)


def true_rewards(
    rows: Rows, layout: RowLayout, reward: Reward, tasks: Sequence[Task], index: Tensor | None = None
) -> Tensor:
    """True reward `[n, K, P]` in each of n `tasks` of the rows `[K, N, row]` at `index` `[K, P]`, or of all rows."""
    if index is None:
        index = torch.arange(rows.shape[1]).expand(rows.shape[0], -1)
    table = torch.empty(len(tasks), *index.shape)
    for source, part, chunk in _chunks(rows, index):
        observation, action, next_observation = (p[0].numpy() for p in layout.split(chunk)[:3])
        labels = [reward(observation, action, next_observation, task.parameter) for task in tasks]
        table[:, source, part] = torch.from_numpy(np.stack(labels)).float()
    return table


def diagnostics(tables: RelabelTables, truth: Tensor | None) -> dict[str, list[list[float | None]] | None]:
    """Per pair (i, j): share of eligible rows, and root-mean-square error of eligible and of all labels.

    The diagonal of the share is None; errors are None where no row is eligible, or altogether without a `truth`.
    """
    # A task at a time, because temporary tables of all pairs would take as much memory as the tables.
    share = torch.stack([eligible.float().mean(-1) for eligible in tables.eligible]).fill_diagonal_(torch.nan)
    if truth is None:
        return {"share": _matrix(share), "error_eligible": None, "error_all": None}
    eligible_errors, errors = [], []
    for label, true, eligible in zip(tables.reward, truth, tables.eligible, strict=True):
        squared = (label - true).square()
        eligible_errors.append(((squared * eligible).sum(-1) / eligible.sum(-1)).sqrt())  # 0 / 0 -> nan -> None
        errors.append(squared.mean(-1).sqrt())
    return {"share": _matrix(share), "error_eligible": _matrix(eligible_errors), "error_all": _matrix(errors)}


def _matrix(rows: Iterable[Tensor]) -> list[list[float | None]]:
    return [[None if value != value else round(value, 6) for value in row.tolist()] for row in rows]


@torch.no_grad()
def cross_task_error(
    model: Ensemble, rows: Tensor, truth: Tensor, layout: RowLayout, threshold: float
) -> dict[str, Any]:
    """How wrong reward ensembles are on other tasks' rows that they would relabel (paper, Fig. 7).

    `rows` `[K, n, row]` of every task and their `truth` `[K, K, n]` for every task (first axis). Gives the squared
    error of single members, averaged over members, then over the kept rows of the other tasks, per task (None where no
    row is kept), and the share of rows kept.
    """
    tasks = rows.shape[0]
    pair = layout.pair(rows).reshape(1, -1, layout.pair_size).expand(tasks, -1, -1)
    predictions = model.predict(pair)  # [K, E, K * n, 1]
    squared = (predictions.squeeze(-1) - truth.flatten(1).unsqueeze(1)).square().mean(1).view_as(truth)
    kept = (spread(predictions) < threshold).view_as(truth)
    kept[torch.arange(tasks), torch.arange(tasks)] = False
    count = kept.sum((1, 2))
    error = (squared * kept).sum((1, 2)) / count  # 0 / 0 -> nan -> None
    return {
        "error": [None if value != value else value for value in error.tolist()],
        "kept": float(count.sum()) / (tasks * (tasks - 1) * rows.shape[1]),
    }
