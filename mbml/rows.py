"""Packed transitions: one float32 row `s | a | s' | r | terminated` per transition.

The rows of T tasks are a dense tensor `[T, N, row]`, of which a batch is one gather, or `MappedRows`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbml.transitions import VECTORS, DatasetError, TransitionBatch


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


class MappedRows:
    """Rows `[T, N, row]` whose vectors stay in memory-mapped files: a batch is copied from there when it is drawn.

    So the bulk of the rows is page cache, which every process that maps the same files shares. The two scalars of a
    row are copied into memory once: eight bytes a row, and one gather for all tasks.
    """

    def __init__(self, tasks: Sequence[Sequence[TransitionBatch]]) -> None:
        """The shards of each task in order, N rows a task. Their vectors are kept as views, not copied.

        Raises:
            DatasetError: the tasks differ in their number of rows; learners sample all of them with one range.
        """
        lengths = {sum(map(len, shards)) for shards in tasks}
        if len(lengths) > 1:
            found = f"{min(lengths)} to {max(lengths)} transitions"
            raise DatasetError(f"The batches have {found}; all tasks need the same number.")
        # Of each task, shard by shard: observations, actions and next observations.
        self._shards = [[[_view(getattr(shard, name)) for name in VECTORS] for shard in shards] for shards in tasks]
        self._widths = [*(column.shape[1] for column in self._shards[0][0]), 2]
        self.shape = torch.Size((len(tasks), lengths.pop(), sum(self._widths)))
        self.scalars = torch.empty(*self.shape[:2], 2)  # reward | terminated
        for own, shards in zip(self.scalars, tasks, strict=True):
            for column, name in enumerate(("reward", "terminated")):
                own[:, column] = torch.cat([_view(getattr(shard, name)) for shard in shards])

    def __len__(self) -> int:
        return self.shape[0]

    def gather(self, indices: Tensor, tasks: Tensor | None = None) -> Tensor:
        """See `gather_rows`."""
        rows = torch.empty(*indices.shape, self.shape[2])
        *vectors, scalars = rows.split(self._widths, dim=-1)
        scalars.copy_(gather_rows(self.scalars, indices, tasks))
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


Rows = Tensor | MappedRows


def _view(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # A memory map is read-only, which a tensor cannot be; nothing here writes into one.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def gather_rows(rows: Rows, indices: Tensor, tasks: Tensor | None = None) -> Tensor:
    """Of rows `[T, N, R]` those at `indices` `[n, m]`, as `[n, m, R]`.

    Each line of `indices` is for one of `tasks` `[n]`, which may name a task twice; without them, for all in order.
    """
    if isinstance(rows, MappedRows):
        return rows.gather(indices, tasks)
    number, available, width = rows.shape
    tasks = torch.arange(number, device=rows.device) if tasks is None else tasks
    flat = rows.view(number * available, width).index_select(0, (indices + tasks.unsqueeze(1) * available).flatten())
    return flat.view(*indices.shape, width)


def sample_rows(rows: Rows, count: int, generator: torch.Generator, tasks: Tensor | None = None) -> Tensor:
    """Of each task, or of each of `tasks` `[T]`, so many uniform rows with replacement, `[T, count, R]`."""
    number, available, _ = rows.shape
    indices = sample_indices(number if tasks is None else len(tasks), count, available, generator)
    return gather_rows(rows, indices, tasks)


def spread_rows(rows: Rows, count: int) -> Tensor:
    """Of rows `[T, N, R]` about `count` of each task, evenly spread over its batch, `[T, n, R]`."""
    kept = torch.arange(0, rows.shape[1], max(1, rows.shape[1] // count), device=getattr(rows, "device", "cpu"))
    return gather_rows(rows, kept.expand(rows.shape[0], -1))


def resident(rows: Rows, device: torch.device | str) -> Rows:
    """Rows `[T, N, R]` that a learner on `device` can draw from: as they are on a CPU; on a GPU a copy, made task by
    task.
    """
    if torch.device(device).type == "cpu":
        return rows
    result, everything = torch.empty(rows.shape, device=device), torch.arange(rows.shape[1]).unsqueeze(0)
    for task, own in enumerate(result):
        own.copy_(gather_rows(rows, everything, torch.tensor([task]))[0])
    return result


def scalars_of(rows: Rows) -> Tensor:
    """`reward | terminated` `[T, N, 2]` of all rows, not copied."""
    return rows.scalars if isinstance(rows, MappedRows) else rows[..., -2:]
