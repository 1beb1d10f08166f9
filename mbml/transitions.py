"""Transitions in memory: the columns of the offline dataset as numpy arrays, and the rules their rows obey.

`terminated` is the environment's own end and stops bootstrapping; a time limit is `truncated` and is
bootstrapped through. A row may carry both when the environment ends exactly at the time limit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

DTYPES = {
    "observation": np.float32,
    "action": np.float32,
    "next_observation": np.float32,
    "reward": np.float32,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "episode": np.int32,
    "step": np.int32,
}
VECTORS = ("observation", "action", "next_observation")
_ROWS_AT_ONCE = 16_384  # bounds the memory of a check, not its result


class DatasetError(ValueError):
    """A dataset that is missing, damaged or inconsistent, or rows that do not fit it."""


@dataclass(frozen=True, eq=False)
class TransitionBatch:
    """N transitions of one task in the order they happened; ds, da: observation and action size."""

    observation: np.ndarray  # [N, ds] float32
    action: np.ndarray  # [N, da] float32
    next_observation: np.ndarray  # [N, ds] float32; what the step led to, also where an episode ends
    reward: np.ndarray  # [N] float32
    terminated: np.ndarray  # [N] bool; the environment's own end
    truncated: np.ndarray  # [N] bool; cut by a time limit
    episode: np.ndarray  # [N] int32; a number that no other episode of the task has
    step: np.ndarray  # [N] int32; 0 on the first row of an episode

    def __len__(self) -> int:
        return len(self.reward)

    def rows(self, start: int, stop: int) -> "TransitionBatch":
        """Rows start:stop as views."""
        return TransitionBatch(**{name: getattr(self, name)[start:stop] for name in DTYPES})

    def check(self, observation_size: int | None = None, action_size: int | None = None) -> None:
        """Raise DatasetError unless shapes and dtypes are as declared above, and the sizes as given."""
        for name, dtype in DTYPES.items():
            column = getattr(self, name)
            dimensions = 2 if name in VECTORS else 1
            if not isinstance(column, np.ndarray) or column.dtype != dtype or column.ndim != dimensions:
                array = isinstance(column, np.ndarray)
                found = f"{column.dtype} {column.shape}" if array else type(column).__name__
                wanted = f"a {dimensions}-D numpy array of {np.dtype(dtype)}"
                raise DatasetError(f"{name} is {found}; it must be {wanted}.")
        rows = {name: len(getattr(self, name)) for name in DTYPES}
        if len(set(rows.values())) != 1:
            raise DatasetError(f"The columns have different numbers of rows: {rows}.")
        size = observation_size or self.observation.shape[1]
        for name, wanted in zip(VECTORS, (size, action_size or self.action.shape[1], size), strict=True):
            if (width := getattr(self, name).shape[1]) != wanted:
                raise DatasetError(f"{name} has {width} columns; it must have {wanted}.")


def concatenate(batches: list[TransitionBatch]) -> TransitionBatch:
    """All rows, one batch after another; a single batch is returned as it is, without a copy."""
    if len(batches) == 1:
        return batches[0]
    return TransitionBatch(**{name: np.concatenate([getattr(b, name) for b in batches]) for name in DTYPES})


def check_finite(batch: TransitionBatch, where: str) -> None:
    """Raise DatasetError, naming `where` and the row, if a number is NaN or infinite."""
    for start, rows in _pieces(batch):
        for name in (*VECTORS, "reward"):
            bad = ~np.isfinite(getattr(rows, name)).reshape(len(rows), -1).all(axis=1)
            _refuse(bad, where, start, f"{name} is not finite")


def check_episodes(shards: Iterable[tuple[str, TransitionBatch]], horizon: int) -> int:
    """Check the order of one task's rows, given shard by shard with a name for each; the number of episodes.

    In every episode `step` counts from 0 to at most horizon - 1 and `next_observation` is the next row's
    `observation`; the flags are set on its last row only (data may also stop without one); its number does
    not come back later. A row at the time limit is `truncated`, whether or not it is also `terminated`: one
    that is only `terminated` comes from a program that mixes the two up.

    Raises:
        DatasetError: the shard, the row and its first fault.
    """
    last: TransitionBatch | None = None
    episodes: set[int] = set()
    for where, batch in shards:
        for start, rows in _pieces(batch):
            outside = (rows.step < 0) | (rows.step >= horizon)
            _refuse(outside, where, start, f"step is not in 0..{horizon - 1}, below the horizon")
            missed = (rows.step == horizon - 1) & ~rows.truncated
            _refuse(missed, where, start, f"truncated is not set at the time limit of {horizon} steps")
            if last is None:
                _refuse(rows.step[:1] != 0, where, start, "step is not 0 on the first row of a task")
                episodes.add(int(rows.episode[0]))
                start += 1
            else:
                rows = concatenate([last, rows])
            last = rows.rows(len(rows) - 1, len(rows))
            later = rows.rows(1, len(rows))
            for bad, fault in _faults(rows.rows(0, len(rows) - 1), later):
                _refuse(bad, where, start, fault)
            for row in np.flatnonzero(later.step == 0):
                number = int(later.episode[row])
                if number in episodes:
                    raise DatasetError(f"{where}, row {start + row}: episode {number} comes back after another.")
                episodes.add(number)
    return len(episodes)


def _faults(earlier: TransitionBatch, later: TransitionBatch) -> Iterator[tuple[np.ndarray, str]]:
    """What can be wrong with a row of `later` after the row of `earlier` that came just before it: where, and what."""
    inside = earlier.episode == later.episode
    yield ~inside & (later.step != 0), "step does not restart at 0 with a new episode"
    yield inside & (later.step != earlier.step + 1), "step does not increase by one within an episode"
    ended = earlier.terminated | earlier.truncated
    yield inside & ended, "the row before is terminated or truncated, but its episode goes on"
    apart = (earlier.next_observation != later.observation).any(axis=1)
    yield inside & apart, "observation is not the next_observation of the row before"


def _pieces(batch: TransitionBatch) -> Iterator[tuple[int, TransitionBatch]]:
    for start in range(0, len(batch), _ROWS_AT_ONCE):
        yield start, batch.rows(start, start + _ROWS_AT_ONCE)


def _refuse(bad: np.ndarray, where: str, start: int, fault: str) -> None:
    if bad.any():
        raise DatasetError(f"{where}, row {start + int(bad.argmax())}: {fault}.")
