"""Transitions in memory: the columns of the offline dataset as numpy arrays, and the rules their rows obey.

`terminated` is the environment's own end and stops bootstrapping; a time limit is `truncated` and is
bootstrapped through. A row may carry both when the environment ends exactly at the time limit.
"""

from collections.abc import Iterator
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
_ROWS_AT_ONCE = 65_536  # bounds the memory of a check, not its result


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
        sizes = (observation_size or self.observation.shape[1], action_size)
        for name, size in zip(VECTORS, (sizes[0], sizes[1], sizes[0]), strict=True):
            width = getattr(self, name).shape[1]
            if size is not None and width != size:
                raise DatasetError(f"{name} has {width} columns; it must have {size}.")


def concatenate(batches: list[TransitionBatch]) -> TransitionBatch:
    """All rows, one batch after another; a single batch is returned as it is, without a copy."""
    if len(batches) == 1:
        return batches[0]
    return TransitionBatch(**{name: np.concatenate([getattr(b, name) for b in batches]) for name in DTYPES})


def pack(batch: TransitionBatch) -> np.ndarray:
    """[N, 2 ds + da + 2] float32 rows: observation | action | next_observation | reward | terminated.

    The first ds + da columns are the input of a Q function, the first 2 ds + da + 1 a row of context.
    """
    ds, da = batch.observation.shape[1], batch.action.shape[1]
    rows = np.empty((len(batch), 2 * ds + da + 2), np.float32)
    rows[:, :ds] = batch.observation
    rows[:, ds : ds + da] = batch.action
    rows[:, ds + da : -2] = batch.next_observation
    rows[:, -2] = batch.reward
    rows[:, -1] = batch.terminated
    return rows


def count_episodes(batch: TransitionBatch) -> int:
    """The number of episodes in a batch of at least one row."""
    return 1 + int(np.count_nonzero(np.diff(batch.episode)))


def check_finite(batch: TransitionBatch, where: str) -> None:
    """Raise DatasetError, naming `where` and the row, if a number is NaN or infinite."""
    for offset, rows in _pieces(batch):
        for name in (*VECTORS, "reward"):
            bad = ~np.isfinite(getattr(rows, name)).reshape(len(rows), -1).all(axis=1)
            _refuse(bad, where, offset, f"{name} is not finite")


class EpisodeCheck:
    """Checks the rows of one task, fed in order, shard by shard; keeps only the last row and the episodes.

    In every episode `step` counts from 0 to at most horizon - 1 and `next_observation` is the next row's
    `observation`; the flags are set on its last row only (data may also stop without one); its number does
    not come back later. A row at the time limit is `truncated`, whether or not it is also `terminated`: one
    that is only `terminated` comes from a program that mixes the two up.
    """

    def __init__(self, horizon: int):
        self.horizon = horizon
        self.episodes: set[int] = set()
        self._last: TransitionBatch | None = None

    def feed(self, batch: TransitionBatch, where: str) -> None:
        """Check the next rows; raise DatasetError naming `where`, the row and its fault."""
        for offset, rows in _pieces(batch):
            self._check_time_limit(rows, where, offset)
            if self._last is None:
                _refuse(rows.step[:1] != 0, where, offset, "step is not 0 on the first row of a task")
                self.episodes.add(int(rows.episode[0]))
            else:
                self._check_pairs(self._last, rows.rows(0, 1), where, offset)
            self._check_pairs(rows.rows(0, len(rows) - 1), rows.rows(1, len(rows)), where, offset + 1)
            self._last = rows.rows(len(rows) - 1, len(rows))

    def _check_time_limit(self, rows: TransitionBatch, where: str, offset: int) -> None:
        outside = (rows.step < 0) | (rows.step >= self.horizon)
        _refuse(outside, where, offset, f"step is not in 0..{self.horizon - 1}, below the horizon")
        missed = (rows.step == self.horizon - 1) & ~rows.truncated
        _refuse(missed, where, offset, f"truncated is not set at the time limit of {self.horizon} steps")

    def _check_pairs(self, earlier: TransitionBatch, later: TransitionBatch, where: str, offset: int) -> None:
        """Each row of `later` against the row of `earlier` that came just before it."""
        inside = earlier.episode == later.episode
        _refuse(~inside & (later.step != 0), where, offset, "step does not restart at 0 with a new episode")
        jumps = inside & (later.step != earlier.step + 1)
        _refuse(jumps, where, offset, "step does not increase by one within an episode")
        ended = inside & (earlier.terminated | earlier.truncated)
        _refuse(ended, where, offset, "the row before is terminated or truncated, but its episode goes on")
        apart = inside & (earlier.next_observation != later.observation).any(axis=1)
        _refuse(apart, where, offset, "observation is not the next_observation of the row before")
        for row in np.flatnonzero(~inside):
            number = int(later.episode[row])
            if number in self.episodes:
                raise DatasetError(f"{where}, row {offset + row}: episode {number} comes back after another.")
            self.episodes.add(number)


def _pieces(batch: TransitionBatch) -> Iterator[tuple[int, TransitionBatch]]:
    for start in range(0, len(batch), _ROWS_AT_ONCE):
        yield start, batch.rows(start, start + _ROWS_AT_ONCE)


def _refuse(bad: np.ndarray, where: str, offset: int, fault: str) -> None:
    if bad.any():
        raise DatasetError(f"{where}, row {offset + int(bad.argmax())}: {fault}.")
