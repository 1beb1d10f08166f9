"""Relabelling tables: what every transition would have earned in every other task (paper, section 4; Eq. 7)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from mbml.models import Ensemble, Target, spread
from mbml.partners import Ring
from mbml.rows import Lengths, RowLayout, Rows, gather_rows, lengths_of
from mbml.seeding import generator_of
from mbml.settings import NotNegative, Whole, later

if TYPE_CHECKING:  # what was learned is used where there is no simulator
    from mbml.envs import Reward, Task

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
    partners: Whole = later(16)
    """Other tasks that a task's transitions are relabelled for, a random choice; all where there are no more, or with
    0. Tables are linear in the tasks where there are more."""
    source: Source = "ensemble"
    """Labels of the reward ensembles, or the true reward with everything eligible."""


@dataclass(frozen=True)
class RelabelTables:
    """Labels of the pooled transitions of task j for task i.

    `index` `[K, P]` int64: which rows of task j are in the pool. `reward` `[K, K, P]`: label for task i (first axis) of
    row t of task j. `eligible` `[K, K, P]` bool, false for i = j. `next_observation` `[K, K, P, d_s]` or None.

    Pools of different `sizes` `[K]` stand one after the other instead, Q transitions in all: `[Q]` for `[K, P]`, and
    `[K, Q]` for `[K, K, P]`. So they do with an `order` `[K]`, where every task has labels for its partners in that
    `Ring` alone: the first axis of labels and flags are then the numbers of the partners.
    """

    index: Tensor
    reward: Tensor
    eligible: Tensor
    next_observation: Tensor | None = None
    sizes: Tensor | None = None
    order: Tensor | None = None

    @classmethod
    def of(
        cls,
        index: Sequence[Tensor],
        reward: Tensor,
        eligible: Tensor,
        following: Tensor | None,
        order: Tensor | None = None,
    ) -> RelabelTables:
        """Of every task's pool, and of labels and flags `[K, Q, ...]`, or with an `order` `[partners, Q, ...]`."""
        pools = _pools(index)
        if pools.same is None or order is not None:
            return cls(torch.cat([*index]), reward, eligible, following, torch.tensor(pools.each), order)
        flat = (reward, eligible, following)
        return cls(torch.stack([*index]), *(_by_task(part, pools) for part in flat if part is not None))

    @cached_property
    def pools(self) -> Lengths:
        """The size of every task's pool."""
        sizes = [self.index.shape[1]] * len(self.index) if self.sizes is None else self.sizes.tolist()
        return Lengths(tuple(sizes), self.index.device)

    @cached_property
    def ring(self) -> Ring | None:
        """Who has labels for whom; None where all have them for all others."""
        return None if self.order is None else Ring(self.order, len(self.reward))

    @property
    def partners(self) -> int:
        """Tasks that the transitions of a task have labels for."""
        return len(self.pools.each) - 1 if self.ring is None else self.ring.partners

    def partner(self, j: Tensor, number: Tensor) -> Tensor:
        """One of those tasks, of this `number` from 0 to below `partners`, for tasks `j`; shapes broadcast."""
        return number + (number >= j).long() if self.ring is None else self.ring.partner(j, number)

    def rows_at(self, places: Tensor, tasks: Tensor | None = None) -> Tensor:
        """The rows `[K, n]` of each task at `places` `[K, n]` of its pool, or of each of `tasks`."""
        return self.index.flatten()[self.pools.positions(places, tasks)]

    def may(self, i: Tensor, j: Tensor, t: Tensor) -> Tensor:
        """Whether transitions at `t` of the pools of tasks `j` may be relabelled for tasks `i`; shapes broadcast."""
        found = self._flat(self.eligible)[self._line(i, j), self.pools.starts[j] + t]
        return found if self.ring is None else found & self.ring.knows(i, j)

    def relabelled(self, layout: RowLayout, contexts: Tensor, i: Tensor, j: Tensor, t: Tensor) -> Tensor:
        """Eq. 7: transitions `contexts` `[n, d_c]` of tasks `j` `[n]`, which are at `t` `[n]` of their pools, with the
        labels of tasks `i` `[n]`.

        Where dynamics vary, the next observation is replaced as well as the reward (authors' code).
        """
        pair, places = layout.pair(contexts), self.pools.starts[j] + t
        if self.next_observation is None:
            following = contexts[:, layout.pair_size : -1]
        else:
            following = self._flat(self.next_observation)[self._line(i, j), places]
        return torch.cat([pair, following, self._flat(self.reward)[self._line(i, j), places].unsqueeze(1)], 1)

    def _line(self, i: Tensor, j: Tensor) -> Tensor:
        """Where labels for tasks `i` stand; anywhere, where tasks `j` have none."""
        return i if self.ring is None else self.ring.number(i, j).clamp(0, self.ring.partners - 1)

    def _flat(self, table: Tensor) -> Tensor:
        return table.flatten(1, 2) if self.sizes is None else table

    def tensors(self) -> dict[str, Tensor]:
        """The tables by name, for storage."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def to(self, device: torch.device | str) -> RelabelTables:
        """The same tables on `device`; their sizes, which are read back, stay where they are."""
        moved = {name: value if name == "sizes" else value.to(device) for name, value in self.tensors().items()}
        return RelabelTables(**moved)


def pool_indices(tasks: int, available: int, pool: int, generator: torch.Generator) -> Tensor:
    """Row numbers of the relabelling pool, `[tasks, P]`, sorted, without replacement; all rows when `pool` is 0."""
    return torch.stack(pools_of(Lengths((available,) * tasks), pool, generator))


def pools_of(lengths: Lengths, pool: int, generator: torch.Generator) -> list[Tensor]:
    """The relabelling pool of every task: sorted row numbers `[P]`, without replacement; all rows where there are no
    more than `pool`, or when `pool` is 0."""
    return [
        torch.randperm(n, generator=generator)[:pool].sort().values if 0 < pool < n else torch.arange(n)
        for n in lengths.each
    ]


def ring_of(tasks: int, config: RelabelConfig, seed: int) -> Ring | None:
    """Who is whose partner among so many tasks; None where everybody is everybody's."""
    if not 0 < config.partners < tasks - 1:
        return None
    return Ring(torch.randperm(tasks, generator=generator_of(seed, "relabel", "partners")), config.partners)


def _pools(index: Iterable[Tensor]) -> Lengths:
    return Lengths(tuple(len(pool) for pool in index))


def _by_task(table: Tensor, pools: Lengths) -> Tensor:
    """A table `[n, Q, ...]` as `[n, K, P, ...]` where all pools are of one size."""
    return table if pools.same is None else table.unflatten(1, (len(pools.each), pools.same))


def relabel(
    rows: Rows,
    index: Sequence[Tensor] | Tensor,
    layout: RowLayout,
    models: Mapping[Target, Ensemble],
    config: RelabelConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
    ring: Ring | None = None,
    into: Mapping[str, Tensor] | None = None,
) -> RelabelTables:
    """Apply every task's ensembles to every task's rows at `index`, its pool; once, before any distillation.

    `models` are the reward ensembles and, where the dynamics vary, the next-state ones: a transition is eligible where
    all of them are certain. With a `ring` only those of every task's partners are applied. `report` hears how many
    tasks' rows are done, of how many. The tables are written `into` tensors of `shapes_of`, which may be in a file.
    """
    pools, tasks = _pools(index), len(index)
    ends = list(itertools.accumulate(pools.each))
    thresholds = {"reward": config.reward_threshold, "next_observation": config.next_observation_threshold}
    shapes = shapes_of(pools, layout, models, ring)
    made = into or {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    made["eligible"].fill_(True)
    lines = tasks if ring is None else ring.partners
    for source, part, chunk in _chunks(rows, index):
        pair = layout.pair(chunk).expand(lines, -1, -1)
        for target, model in models.items():
            applied = model if ring is None else model.select(ring.partner(torch.tensor(source), torch.arange(lines)))
            labels, uncertainty = applied.mean_and_std(pair)
            made[target][:, part] = labels.squeeze(-1) if target == "reward" else labels
            made["eligible"][:, part] &= uncertainty < thresholds[target]
        if part.stop == ends[source]:
            report(source + 1, tasks)
    if ring is None:
        _exclude_own(made["eligible"], pools)
    order = None if ring is None else ring.order
    return RelabelTables.of([*index], made["reward"], made["eligible"], made.get("next_observation"), order)


def shapes_of(
    pools: Lengths, layout: RowLayout, targets: Iterable[Target], ring: Ring | None
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of labels and flags, by name."""
    shape = len(pools.each) if ring is None else ring.partners, sum(pools.each)
    labels: dict[Target, tuple[int, ...]] = {"reward": shape, "next_observation": (*shape, layout.observation_size)}
    return {t: (labels[t], torch.float32) for t in targets} | {"eligible": (shape, torch.bool)}


def _chunks(rows: Rows, index: Sequence[Tensor] | Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """Each task in turn with a part of all pools and the rows there `[1, n, row]`; never a whole pool in memory."""
    start = 0
    for task, pool in enumerate(index):
        for piece in pool.split(_CHUNK):
            yield task, slice(start, start + len(piece)), gather_rows(rows, piece.unsqueeze(0), torch.tensor([task]))
            start += len(piece)


def _exclude_own(eligible: Tensor, pools: Lengths) -> None:
    """No row is relabelled for its own task; `eligible` `[K, Q]` is changed in place."""
    for task, own in enumerate(eligible.split(pools.each, 1)):
        own[task] = False


def relabel_with_truth(
    index: Sequence[Tensor] | Tensor,
    true_reward: Tensor,
    ring: Ring | None = None,
    into: Mapping[str, Tensor] | None = None,
) -> RelabelTables:
    """Tables of the `ground_truth` ablation: `true_rewards` of the K tasks, every cross-task row eligible."""
    pools = _pools(index)
    reward = true_reward.reshape(-1, sum(pools.each))
    made = into or {"reward": reward, "eligible": torch.empty(reward.shape, dtype=torch.bool)}
    made["eligible"].fill_(True)
    if made["reward"] is not reward:
        made["reward"].copy_(reward)
    if ring is None:
        _exclude_own(made["eligible"], pools)
    return RelabelTables.of([*index], made["reward"], made["eligible"], None, None if ring is None else ring.order)


def true_rewards(
    rows: Rows,
    layout: RowLayout,
    reward: Reward,
    tasks: Sequence[Task],
    index: Sequence[Tensor] | Tensor | None = None,
    ring: Ring | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """True reward in each of n `tasks` of the rows at `index`, the pools, or of all rows.

    `[n, K, P]`, or `[n, Q]` where the pools differ in size. With a `ring` of the `tasks`, in those of every task's
    partners: `[partners, Q]`, written `into` a tensor of that shape.
    """
    if index is None:
        index = [torch.arange(length) for length in lengths_of(rows).each]
    pools = _pools(index)
    lines = len(tasks) if ring is None else ring.partners
    table = torch.empty(lines, sum(pools.each)) if into is None else into
    for source, part, chunk in _chunks(rows, index):
        observation, action, next_observation = (p[0].numpy() for p in layout.split(chunk)[:3])
        whose = range(lines) if ring is None else ring.partner(torch.tensor(source), torch.arange(lines)).tolist()
        labels = [reward(observation, action, next_observation, tasks[i].parameter) for i in whose]
        table[:, part] = torch.from_numpy(np.stack(labels)).float()
    return _by_task(table, pools) if ring is None else table


def diagnostics(tables: RelabelTables, truth: Tensor | None) -> dict[str, list[list[float | None]] | None]:
    """Per pair (i, j): share of eligible rows, and root-mean-square error of eligible and of all labels.

    The diagonal of the share is None; errors are None where no row is eligible, or altogether without a `truth`. Where
    every task has labels for its partners alone, the first axis is their numbers, and `partners` says who they are.
    """

    # A line at a time, because temporary tables of all pairs would take as much memory as the tables.
    def per_pool(values: Tensor) -> Tensor:
        """Sums `[K]` over every pool of one line's values."""
        return torch.stack([part.sum() for part in values.flatten().split(tables.pools.each)])

    sizes, found = torch.tensor(tables.pools.each), dict[str, Any]()
    share = torch.stack([per_pool(e.float()) for e in tables.eligible]).div(sizes)
    if tables.ring is None:
        share.fill_diagonal_(torch.nan)
    else:
        numbers = torch.arange(tables.partners).unsqueeze(1)
        found["partners"] = tables.ring.partner(torch.arange(len(sizes)), numbers).tolist()
    found |= {"share": _matrix(share), "error_eligible": None, "error_all": None}
    if truth is None:
        return found
    eligible_errors, errors = [], []
    for label, true, eligible in zip(tables.reward, truth, tables.eligible, strict=True):
        squared = (label - true).square()
        eligible_errors.append((per_pool(squared * eligible) / per_pool(eligible)).sqrt())  # 0 / 0 -> nan -> None
        errors.append((per_pool(squared) / sizes).sqrt())
    return found | {"error_eligible": _matrix(eligible_errors), "error_all": _matrix(errors)}


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
