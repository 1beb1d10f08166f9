"""Packed transitions: one float32 row `s | a | s' | r | terminated` per transition, so that a batch is one gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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

    def pair(self, rows: Tensor) -> Tensor:
        """The part `s | a`."""
        return rows[..., : self.pair_size]

    def context(self, rows: Tensor) -> Tensor:
        """The part `s | a | s' | r`."""
        return rows[..., : self.context_size]


def sample_indices(tasks: int, count: int, available: int, generator: torch.Generator) -> Tensor:
    """Uniform row numbers with replacement, `[tasks, count]`, each in `[0, available)`."""
    return torch.randint(available, (tasks, count), generator=generator, device=generator.device)


def gather_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """Rows `[T, N, R]` at per-task `indices` `[T, n]`, as `[T, n, R]`."""
    tasks, available, width = rows.shape
    offsets = torch.arange(tasks, device=rows.device).unsqueeze(1) * available
    flat = rows.view(tasks * available, width).index_select(0, (indices + offsets).flatten())
    return flat.view(*indices.shape, width)
