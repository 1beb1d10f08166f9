"""Packed transitions: one float32 row `s | a | s' | r | terminated` per transition.

The rows of T tasks are a dense tensor `[T, N, row]`, `FlatRows` where the tasks differ in length, or `MappedRows`. A
batch is one gather, and every task is sampled over its own length.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbml.transitions import VECTORS, TransitionBatch


class Transitions(NamedTuple):
    """Views of a batch of rows; sizes `[..., d_s]`, `[..., d_a]`, `[..., d_s]`, `[..., 1]`, `[..., 1]`."""

    observation: Tensor
    action: Tensor
    next_observation: Tensor
    reward: Tensor
    terminated: Tensor


@dataclass(frozen=True)
class RowLayout:
    """Where the parts of a packed row are."""

    observation_size: int
    action_size: int

    @property
    def pair_size(self) -> int:
        """Width of `s | a`."""
        return self.observation_size + self.action_size

    @property
    def context_size(self) -> int:
        """Width d_c of a context transition `s | a | s' | r`."""
        return 2 * self.observation_size + self.action_size + 1

    @property
    def row_size(self) -> int:
        """Width of a whole row."""
        return self.context_size + 1

    def split(self, rows: Tensor) -> Transitions:
        """Name the parts of rows `[..., row_size]`."""
        sizes = [self.observation_size, self.action_size, self.observation_size, 1, 1]
        return Transitions(*rows.split(sizes, dim=-1))

    def split_context(self, context: Tensor) -> tuple[Tensor, ...]:
        """Name the parts s, a, s', r of context transitions `[..., context_size]`."""
        return context.split([self.observation_size, self.action_size, self.observation_size, 1], dim=-1)

    def pair(self, rows: Tensor) -> Tensor:
        """The part `s | a`."""
        return rows[..., : self.pair_size]

    def context(self, rows: Tensor) -> Tensor:
        """The part `s | a | s' | r`."""
        return rows[..., : self.context_size]


def sample_indices(tasks: int, count: int, available: int, generator: torch.Generator) -> Tensor:
    """Uniform row numbers with replacement, `[tasks, count]`, each in `[0, available)`."""
    return torch.randint(available, (tasks, count), generator=generator, device=generator.device)


@dataclass(frozen=True)
class Lengths:
    """How many rows each of T tasks has, and where they begin when the tasks stand one after the other."""

    each: tuple[int, ...]
    device: torch.device | str = "cpu"
    """Where positions are computed."""

    @cached_property
    def same(self) -> int | None:
        """The length of every task; None where they differ."""
        return self.each[0] if len(set(self.each)) == 1 else None

    @cached_property
    def starts(self) -> Tensor:
        """Position `[T]` of every task's first row."""
        return torch.tensor([0, *itertools.accumulate(self.each)][:-1], device=self.device)

    @cached_property
    def _tensor(self) -> Tensor:
        return torch.tensor(self.each, device=self.device)

    def sample(self, count: int, generator: torch.Generator, tasks: Tensor | None = None) -> Tensor:
        """Uniform row numbers with replacement of each task, or of each of `tasks` `[n]`: `[n, count]`, each below its
        task's length."""
        number = len(self.each) if tasks is None else len(tasks)
        if self.same is not None:
            return sample_indices(number, count, self.same, generator)
        lengths = self._tensor if tasks is None else self._tensor[tasks]
        # A double below 1 times a length stays below it, rounded or not.
        draws = torch.rand(number, count, generator=generator, dtype=torch.float64, device=generator.device)
        return (draws * lengths.unsqueeze(1)).long()

    def spread(self, count: int) -> Tensor:
        """About `count` row numbers of each task, evenly spread, `[T, n]`; they repeat in a task that has fewer."""
        if self.same is not None:
            return torch.arange(0, self.same, max(1, self.same // count), device=self.device).expand(len(self.each), -1)
        number = min(count, max(self.each))
        return torch.arange(number, device=self.device) * self._tensor.unsqueeze(1) // number

    def positions(self, indices: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Where the rows at `indices` `[n, m]` of each task, or of each of `tasks` `[n]`, stand: `[n, m]`."""
        return indices + (self.starts if tasks is None else self.starts[tasks]).unsqueeze(1)


class FlatRows:
    """Rows of T tasks in memory, one task after the other: `flat` `[sum of lengths, R]`."""

    def __init__(self, flat: Tensor, lengths: Lengths) -> None:
        self.flat, self.lengths = flat, lengths

    def __len__(self) -> int:
        return len(self.lengths.each)

    def gather(self, indices: Tensor, tasks: Tensor | None = None) -> Tensor:
        """See `gather_rows`."""
        chosen = self.flat.index_select(0, self.lengths.positions(indices, tasks).flatten())
        return chosen.view(*indices.shape, self.flat.shape[1])


class MappedRows:
    """Rows of T tasks whose vectors stay in memory-mapped files: a batch is copied from there when it is drawn.

    So the bulk of the rows is page cache, which every process that maps the same files shares. The two scalars of a
    row are copied into memory once: eight bytes a row, and one gather for all tasks.
    """

    def __init__(self, tasks: Sequence[Sequence[TransitionBatch]]) -> None:
        """The shards of each task in order. Their vectors are kept as views, not copied."""
        self.lengths = Lengths(tuple(sum(map(len, shards)) for shards in tasks))
        # Of each task, shard by shard: observations, actions and next observations.
        self._shards = [[[_view(getattr(shard, name)) for name in VECTORS] for shard in shards] for shards in tasks]
        self._widths = [*(column.shape[1] for column in self._shards[0][0]), 2]
        scalars = torch.empty(sum(self.lengths.each), 2)  # reward | terminated
        for column, name in enumerate(("reward", "terminated")):
            scalars[:, column] = torch.cat([_view(getattr(s, name)) for shards in tasks for s in shards])
        self.scalars = FlatRows(scalars, self.lengths)

    def __len__(self) -> int:
        return len(self._shards)

    def gather(self, indices: Tensor, tasks: Tensor | None = None) -> Tensor:
        """See `gather_rows`."""
        rows = torch.empty(*indices.shape, sum(self._widths))
        *vectors, scalars = rows.split(self._widths, dim=-1)
        scalars.copy_(self.scalars.gather(indices, tasks))
        chosen = range(len(self)) if tasks is None else tasks.tolist()
        for task, index, *parts in zip(chosen, indices, *vectors, strict=True):
            shards = self._shards[task]
            if len(shards) == 1:
                for column, part in zip(shards[0], parts, strict=True):
                    torch.index_select(column, 0, index, out=part)
                continue
            for columns in shards:
                inside = (index >= 0) & (index < len(columns[0]))
                for column, part in zip(columns, parts, strict=True):
                    part[inside] = column[index[inside]]
                index = index - len(columns[0])
        return rows


Rows = Tensor | FlatRows | MappedRows


def _view(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # A memory map is read-only, which a tensor cannot be; nothing here writes into one.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def lengths_of(rows: Rows) -> Lengths:
    """How many rows each task has."""
    return Lengths((rows.shape[1],) * len(rows), rows.device) if isinstance(rows, Tensor) else rows.lengths


def gather_rows(rows: Rows, indices: Tensor, tasks: Tensor | None = None) -> Tensor:
    """Of the rows of T tasks those at `indices` `[n, m]`, as `[n, m, R]`.

    Each line of `indices` is for one of `tasks` `[n]`, which may name a task twice; without them, for all in order.
    """
    if isinstance(rows, Tensor):
        number, available, width = rows.shape
        tasks = torch.arange(number, device=rows.device) if tasks is None else tasks
        places = (indices + tasks.unsqueeze(1) * available).flatten()
        return rows.view(number * available, width).index_select(0, places).view(*indices.shape, width)
    return rows.gather(indices, tasks)


def sample_rows(rows: Rows, count: int, generator: torch.Generator, tasks: Tensor | None = None) -> Tensor:
    """Of each task, or of each of `tasks` `[T]`, so many uniform rows with replacement, `[T, count, R]`."""
    return gather_rows(rows, lengths_of(rows).sample(count, generator, tasks), tasks)


def spread_rows(rows: Rows, count: int) -> Tensor:
    """About `count` rows of each of T tasks, evenly spread over its batch, `[T, n, R]`; those of a task that has fewer
    repeat, so that every task has the same weight."""
    return gather_rows(rows, lengths_of(rows).spread(count))


def rows_of(rows: Rows, task: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows start:stop of one task, `[n, R]`."""
    places = torch.arange(*slice(start, stop).indices(lengths_of(rows).each[task])).unsqueeze(0)
    return gather_rows(rows, places, torch.tensor([task]))[0]


def together(rows: Rows) -> Tensor:
    """The rows of all tasks, copied, as those of one, `[1, N, R]`."""
    return torch.cat([rows_of(rows, task) for task in range(len(rows))]).unsqueeze(0)


def resident(rows: Rows, device: torch.device | str) -> Rows:
    """Rows that a learner on `device` can draw from: as they are on a CPU; on a GPU a copy, made task by task."""
    if torch.device(device).type == "cpu":
        return rows
    lengths = Lengths(lengths_of(rows).each, device)
    flat = torch.empty(sum(lengths.each), rows_of(rows, 0, 0, 0).shape[-1], device=device)
    for task, own in enumerate(flat.split(lengths.each)):
        own.copy_(rows_of(rows, task))
    return FlatRows(flat, lengths) if lengths.same is None else flat.unflatten(0, (len(rows), lengths.same))


def scalars_of(rows: Rows, task: int) -> Tensor:
    """`reward | terminated` `[N, 2]` of all rows of one task, not copied."""
    if isinstance(rows, Tensor):
        return rows[task, :, -2:]
    flat = rows.scalars.flat if isinstance(rows, MappedRows) else rows.flat[:, -2:]
    return flat[rows.lengths.starts[task] :][: rows.lengths.each[task]]
