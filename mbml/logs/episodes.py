"""From a task's raw columns to transitions: order, episodes, what can be derived, and what has to be dropped.

The rules, in this order. Rows are grouped by episode and ordered by step. A flag ends an episode. The next observation
of a row, where the log has none, is the observation of the row that follows in its episode. The last row of an episode
that is not terminated has none, so it is dropped: its observation is where the row before led to. A terminated last row
keeps its own observation there, which nothing bootstraps from. Rows with numbers that are not finite are refused, or
dropped and the episode cut there, so that no transition bridges a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mbml.logs.contract import LARGEST, Counts, LoggedTask, Raw
from mbml.transitions import VECTORS, DatasetError, TransitionBatch

_SAME = 1e-4
"""Parts of a column's spread by which a next observation may differ from the following row's and still be it."""
_REGULAR = 0.9
"""Share of equal differences that makes a whole-numbered step a count, in which gaps are missing rows."""
_CHOICES = 18
"""One whole-numbered action with at most so many values 0, 1, 2, ... is taken for a choice."""
_DROP = "drop such rows with --drop-bad-rows, or mend the file"


def transitions(raw: Raw, drop_bad_rows: bool = False) -> LoggedTask:
    """The transitions of a task, by the rules of this module; raises DatasetError, one sentence."""
    rows = _Rows.of(raw)
    rows.shift()
    rows.link()
    bad = rows.bad()
    if bad.any() and not drop_bad_rows:
        raise DatasetError(rows.fault(int(bad.argmax())))
    kept = ~bad & ~rows.incomplete & _finite(rows.following)
    if not kept.any():
        raise DatasetError(
            f"{rows.place()} has no transition left: of {len(bad)} rows {int(bad.sum())} hold numbers that are not "
            f"finite, and nothing says what the others led to."
        )
    batch = rows.batch(np.flatnonzero(kept))
    episodes = int(batch.episode[-1]) + 1
    before = len(np.unique(rows.run[kept]))
    unfollowed = int((~bad & ~kept).sum())
    return LoggedTask(raw.name, batch, raw, Counts(len(batch), episodes, int(bad.sum()), unfollowed, episodes - before))


@dataclass
class _Rows:
    """All rows of a task in the order of their episodes, with what is known of each."""

    raw: Raw
    columns: dict[str, np.ndarray]
    run: np.ndarray
    """Number of the episode of the file `[N]`."""
    linked: np.ndarray
    """Whether the next row is the next step `[N]`."""
    following: np.ndarray
    """Next observation `[N, ds]`, nan where unknown."""
    incomplete: np.ndarray
    """Whether it lacks what is logged one row late `[N]`."""

    @classmethod
    def of(cls, raw: Raw) -> _Rows:
        columns = _checked(raw)
        order, run = _ordered(raw, columns)
        columns = {role: column[order] for role, column in columns.items()}
        number = len(run)
        linked = np.append(run[1:] == run[:-1], False) & _consecutive(columns.get("step"), run)
        return cls(raw, columns, run, linked, np.empty(0), np.zeros(number, bool))

    def place(self) -> str:
        return f"{self.raw.where}, task {self.raw.name}"

    def shift(self) -> None:
        """Bring what stands one row late to the row that it belongs to; an episode's last row has none then."""
        if shifted := self.raw.columns.keys() & {*self.raw.shifted}:
            self.incomplete = ~self.linked
            for role in shifted:
                self.columns[role] = np.roll(self.columns[role], -1, axis=0)
                if role in ("terminated", "truncated"):
                    self.columns[role] &= self.linked

    def link(self) -> None:
        """Find what every row led to."""
        flags = self.columns["terminated"] | self.columns["truncated"]
        goes_on = self.linked & ~np.append(self.incomplete[1:], True) & flags
        if goes_on.any():
            flag = "terminated" if self.columns["terminated"][goes_on.argmax()] else "truncated"
            column = self.raw.names.get(flag, [flag])[0]
            raise DatasetError(f"{self.row(int(goes_on.argmax()))}: {column} is set, but its episode goes on.")
        observation = self.columns["observation"]
        after = np.roll(observation, -1, axis=0)
        given = np.where(self.columns["terminated"][:, None], observation, np.nan)
        if "next_observation" in self.columns:
            given = np.where(self.absent[:, None], given, self.columns["next_observation"])
            # What is given may be rounded otherwise than the row that it repeats; where it is not that row, something
            # lies between.
            with np.errstate(invalid="ignore", over="ignore"):
                near = (np.abs(given - after) <= _SAME * _spread(observation)).all(1)
            self.linked &= near | self.absent
        self.following = np.where(self.linked[:, None], after, given)

    @property
    def absent(self) -> np.ndarray:
        """Whether the log leaves a row's next observation out `[N]`."""
        return np.asarray(np.isnan(self.columns["next_observation"]).all(1))

    def bad(self) -> np.ndarray:
        """Whether a row `[N]` holds a number that is not finite."""
        whole = _finite(self.columns["observation"])
        rest = _finite(self.columns["action"]) & _finite(self.columns["reward"][:, None])
        if "next_observation" in self.columns:
            rest &= _finite(self.columns["next_observation"]) | self.absent
        return ~(whole & (rest | self.incomplete))

    def fault(self, row: int) -> str:
        """What is wrong with a bad row."""
        for role in ("observation", "action", "reward", "next_observation"):
            values = np.atleast_1d(self.columns[role][row]) if role in self.columns else np.zeros(0)
            if not (fine := _finite(values[:, None])).all():
                at = int((~fine).argmax())
                value = values[at]
                size = f"too large (the limit is {LARGEST:g})" if np.isfinite(value) else "no finite number"
                return f"{self.row(row)}: {self.raw.names[role][at]} is {value:g}, {size}; {_DROP}."
        raise AssertionError("a bad row has a bad number")

    def row(self, row: int) -> str:
        """A row in the words of the file."""
        episode = self.columns["episode"][row] if "episode" in self.columns else self.run[row]
        step = row - int((self.run == self.run[row]).argmax())
        if "step" in self.columns:
            step = self.columns["step"][row]
        return f"{self.place()}, episode {episode}, step {step}"

    def batch(self, kept: np.ndarray) -> TransitionBatch:
        """The rows `kept`, an episode anew wherever one is not followed by the next."""
        follows = np.append(False, (np.diff(kept) == 1) & self.linked[kept[:-1]])
        starts = np.flatnonzero(~follows)
        episode = np.cumsum(~follows) - 1
        last = np.append(~follows[1:], True)
        terminated = self.columns["terminated"][kept]
        return TransitionBatch(
            observation=self.columns["observation"][kept],
            action=self.columns["action"][kept],
            next_observation=self.following[kept],
            reward=self.columns["reward"][kept],
            terminated=terminated,
            truncated=self.columns["truncated"][kept] | (last & ~terminated),
            episode=episode.astype(np.int32),
            step=(np.arange(len(kept)) - starts[episode]).astype(np.int32),
        )


def _finite(values: np.ndarray) -> np.ndarray:
    """Whether all numbers of a row `[N, d]` are finite and of a size that can be computed with, `[N]`."""
    return np.asarray((np.abs(values) < LARGEST).all(1))


def _spread(values: np.ndarray) -> np.ndarray:
    fine = values[_finite(values)]
    return fine.std(0) if len(fine) else np.zeros(values.shape[1])


def _checked(raw: Raw) -> dict[str, np.ndarray]:
    """The columns, numbers as floats and flags as booleans, all of one length."""
    place, columns = f"{raw.where}, task {raw.name}", dict(raw.columns)
    number = len(columns["observation"])
    for role, column in columns.items():
        if len(column) != number:
            raise DatasetError(
                f"{place}: {raw.names[role][0]} has {len(column)} rows, {raw.names['observation'][0]} {number}."
            )
    if number == 0:
        raise DatasetError(f"{place} has no rows.")
    _refuse_choices(raw, place)
    for role in VECTORS:
        if role in columns:
            columns[role] = _floats(columns[role])
    if "next_observation" in columns and columns["next_observation"].shape != columns["observation"].shape:
        widths = columns["next_observation"].shape[1], columns["observation"].shape[1]
        raise DatasetError(f"{place}: next observations have {widths[0]} numbers, observations {widths[1]}.")
    columns["reward"] = _one_number(columns["reward"], raw.names["reward"][0], place)
    for role in ("terminated", "truncated"):
        columns[role] = _flags(columns[role], raw.names[role][0], place) if role in columns else np.zeros(number, bool)
    if "step" in columns:
        columns["step"] = _steps(columns["step"], raw.names["step"][0], place)
    if "episode" in columns:
        columns["episode"] = _labels(columns["episode"], raw.names["episode"][0], place)
    return columns


def _refuse_choices(raw: Raw, place: str) -> None:
    action, names = raw.columns["action"], raw.names["action"]
    values = np.unique(action) if action.dtype.kind in "iu" and action.shape[1] == 1 else np.zeros(0)
    chosen = 0 < len(values) <= _CHOICES and np.array_equal(values, np.arange(len(values)))
    if action.dtype.kind == "b" or (chosen and len(values) > 1):
        found = "true and false" if action.dtype.kind == "b" else f"whole numbers 0 to {len(values) - 1}"
        raise DatasetError(
            f"{place}: {names[0]} holds {found}; discrete actions are not supported (a quantity should be written with "
            f"a decimal point, as a floating type)."
        )


def _floats(values: np.ndarray) -> np.ndarray:
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def _one_number(values: np.ndarray, name: str, place: str) -> np.ndarray:
    if values.dtype.kind not in "fiub" or values.size != len(values):
        raise DatasetError(f"{place}: {name} must hold one number a row.")
    return _floats(values.reshape(len(values)))


def _flags(values: np.ndarray, name: str, place: str) -> np.ndarray:
    if values.size != len(values) or values.dtype.kind not in "fiub" or not np.isin(values, (0, 1)).all():
        raise DatasetError(f"{place}: {name} must be true or false, or 1 or 0, in every row.")
    return values.reshape(len(values)).astype(bool)


def _steps(values: np.ndarray, name: str, place: str) -> np.ndarray:
    if values.dtype.kind in "mM":
        empty = np.isnat(values).any()
        values = values.astype("int64").astype(float)
    else:
        empty = values.dtype.kind not in "iuf" or (values.dtype.kind == "f" and not np.isfinite(values).all())
    if empty or values.size != len(values):
        raise DatasetError(f"{place}: {name} must be a number or a time in every row.")
    return values.reshape(len(values))


def _labels(values: np.ndarray, name: str, place: str) -> np.ndarray:
    if values.size != len(values) or (values.dtype.kind in "fmM" and np.isnan(values).any()):
        raise DatasetError(f"{place}: {name} must name an episode in every row.")
    values = values.reshape(len(values))
    if values.dtype.kind == "O":
        if any(value is None or isinstance(value, list | dict | np.ndarray) for value in values):
            raise DatasetError(f"{place}: {name} must name an episode in every row.")
        values = values.astype(str)
    return values


def _ordered(raw: Raw, columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The order of the rows, and the number of each one's episode in that order."""
    number, step = len(columns["reward"]), columns.get("step")
    place = np.arange(number)
    if "episode" in columns:
        _, first, code = np.unique(columns["episode"], return_index=True, return_inverse=True)
        code = np.argsort(np.argsort(first))[code]  # numbered as they appear
        order = np.lexsort((place, place if step is None else step, code))
        run = code[order]
        if step is not None and (twice := (np.diff(run) == 0) & (np.diff(step[order]) == 0)).any():
            row = order[int(twice.argmax())]
            raise DatasetError(
                f"{raw.where}, task {raw.name}: step {step[row]} of episode {columns['episode'][row]} is there twice."
            )
        return order, run
    ends = columns["terminated"] | columns["truncated"]
    if step is not None:
        ends[:-1] |= step[1:] <= step[:-1]
    elif "terminated" in raw.columns and not raw.columns.keys() & {"truncated", "next_observation"}:
        raise DatasetError(
            f"{raw.where}, task {raw.name} has {raw.names['terminated'][0]} but no truncated, episode, step or next "
            f"observation: where a record was cut cannot be known, and transitions would bridge it. Add one of them."
        )
    return place, np.cumsum(ends) - ends


def _consecutive(step: np.ndarray | None, run: np.ndarray) -> Any:
    """Whether nothing is missing between a row and the next `[N]`: in a whole-numbered count a gap is a lost row."""
    if step is None or step.dtype.kind not in "iu" or len(step) < 2:
        return True
    difference = np.diff(step.astype(np.int64))
    inside = difference[run[1:] == run[:-1]]
    if not len(inside):
        return True
    unit = int(np.median(inside))
    regular = np.mean(inside == unit) >= _REGULAR
    return np.append(difference <= unit, True) if regular else True
