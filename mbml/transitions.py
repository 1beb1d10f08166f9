"""Transitions in memory: the columns of the offline dataset as numpy arrays, and the rules their rows obey.

`terminated` is the environment's own end and stops bootstrapping; a time limit is `truncated` and is
bootstrapped through. A row may carry both when the environment ends exactly at the time limit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

VECTORS = ("observation", "action", "next_observation")
DTYPES = {
    **dict.fromkeys((*VECTORS, "reward"), np.float32),
    **dict.fromkeys(("terminated", "truncated"), np.bool_),
    **dict.fromkeys(("episode", "step"), np.int32),
}
_ROUNDING = 1e-6
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

    def check(self, observation_size: int, action_size: int) -> None:
        """Raise DatasetError unless shapes and dtypes are as declared above, of these sizes."""
        widths = dict(zip(VECTORS, (observation_size, action_size, observation_size), strict=True))
        for name, dtype in DTYPES.items():
            column, shape = getattr(self, name), (len(self), *([widths[name]] if name in widths else []))
            array = isinstance(column, np.ndarray)
            found = f"{column.dtype} {column.shape}" if array else type(column).__name__
            if found != (wanted := f"{np.dtype(dtype)} {shape}"):
                raise DatasetError(f"{name} is {found}; it must be a numpy array of {wanted}.")


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


def check_actions(batch: TransitionBatch, where: str) -> None:
    """Raise DatasetError, naming `where` and the row, if an action is beyond the bounds that learners take."""
    for start, rows in _pieces(batch):
        beyond = np.abs(rows.action).max(axis=1) > 1.0 + _ROUNDING
        _refuse(beyond, where, start, "action is not in [-1, 1], to which import scales it")


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
            if last is None:  # a row of another episode, after which one must begin
                last = replace(rows.rows(0, 1), episode=rows.episode[:1] - 1)
            for bad, fault in _faults(concatenate([last, rows]).rows(0, len(rows)), rows, horizon):
                _refuse(bad, where, start, fault)
            for row in np.flatnonzero(rows.step == 0):
                number = int(rows.episode[row])
                if number in episodes:
                    raise DatasetError(f"{where}, row {start + row}: episode {number} comes back after another.")
                episodes.add(number)
            last = rows.rows(len(rows) - 1, len(rows))
    return len(episodes)


def _faults(earlier: TransitionBatch, later: TransitionBatch, horizon: int) -> Iterator[tuple[np.ndarray, str]]:
    """What can be wrong with a row of `later` after the row of `earlier` that came just before it: where, and what."""
    outside = (later.step < 0) | (later.step >= horizon)
    yield outside, f"step is not in 0..{horizon - 1}, below the horizon"
    missed = (later.step == horizon - 1) & ~later.truncated
    yield missed, f"truncated is not set at the time limit of {horizon} steps"
    inside = earlier.episode == later.episode
    yield ~inside & (later.step != 0), "step is not 0 on the first row of an episode"
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
