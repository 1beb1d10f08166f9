"""What a reader of logs gives: a task's columns as its file has them, before anything is derived or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mbml.registry import Entry
from mbml.transitions import DatasetError, TransitionBatch

if TYPE_CHECKING:
    from mbml.logs.columns import ColumnMap

Bounds = tuple[float | None, float | None]
LARGEST = 1e30
"""Numbers of at least this size are refused like infinite ones: their squares do not fit."""


@dataclass(frozen=True)
class Raw:
    """The N rows of one task as its file has them.

    `columns` by role: `observation`, `action`, `next_observation` `[N, d]`, numbers; `reward`, `terminated`,
    `truncated`, `episode`, `step` `[N]`, of any kind. Only observation, action and reward must be there.
    """

    name: str
    where: str
    """File or dataset, for people."""
    columns: dict[str, np.ndarray]
    names: dict[str, list[str]]
    """Names of every role's columns, one for each dimension."""
    parameter: Any = None
    """What differs between tasks, as JSON, where it is known."""
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    """Least and largest value of actions by name, where known; None where one side is not."""
    shifted: tuple[str, ...] = ()
    """Roles that stand one row late, beside the observation that the step led to."""


@contextmanager
def readable(name: str, what: str) -> Iterator[None]:
    """Whatever a library says of a file that it cannot read becomes a DatasetError with the file's name."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DatasetError(f"{name} is not readable as {what} ({reason}).") from None


class Counts(NamedTuple):
    """What became of a task's rows."""

    rows: int = 0
    """Kept."""
    episodes: int = 0
    """Made of them."""
    bad: int = 0
    """Dropped for a number that is not finite."""
    unfollowed: int = 0
    """Dropped because nothing says what they led to: last rows that are not terminated."""
    cuts: int = 0
    """Places inside an episode of the file where it was cut, for a dropped or missing row."""

    def plus(self, other: Counts) -> Counts:
        """The sums."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class LoggedTask:
    """One task, its transitions in the order of episodes; vectors and rewards still in the log's own scale."""

    name: str
    batch: TransitionBatch
    raw: Raw
    counts: Counts


@dataclass(frozen=True)
class Source:
    """Where logs are, and how to read them."""

    paths: tuple[str, ...]
    columns: ColumnMap


Read = Callable[[Source], Iterator[Raw]]
"""Gives the tasks of a source one after the other, each read only when it is its turn; raises DatasetError."""


@dataclass(frozen=True)
class LogFormat(Entry):
    """A format; `make` is its `Read`."""

    holds: Callable[[str], bool] = lambda path: False
    """Whether a path looks like it: by its name, or by what a folder holds."""
    files: Callable[[Sequence[str]], list[str]] = field(default=lambda paths: list(paths))
    """The files that decide what is read, for the key of the content."""
