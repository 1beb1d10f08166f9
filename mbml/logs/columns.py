"""Which columns of a log are what: a map that the user gives, and the names that are understood without one."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mbml.logs.contract import LARGEST, Bounds, Raw
from mbml.reading import read_yaml
from mbml.settings import ConfigError, hints, unknown, validated
from mbml.transitions import VECTORS, DatasetError

Names = str | tuple[str, ...] | None

DEFAULTS: dict[str, tuple[str, ...]] = {
    "task": ("task",),
    "episode": ("episode",),
    "step": ("step",),
    "observation": ("observation", "observations", "obs_*", "observation_*"),
    "action": ("action", "actions", "action_*"),
    "next_observation": ("next_observation", "next_observations", "next_obs_*", "next_observation_*"),
    "reward": ("reward", "rewards"),
    "terminated": ("terminated", "terminals", "terminations"),
    "truncated": ("truncated", "timeouts", "truncations"),
}
"""What stands for each role where the map is silent: the first that the file has. A * stands for anything."""
_NEEDED = ("observation", "action", "reward")
_AMBIGUOUS = ("done", "dones")


@dataclass(frozen=True)
class ColumnMap:
    """Columns by what they are; None takes those of DEFAULTS that there are.

    A name may end in * or hold one, which takes all columns that fit, in natural order. Columns may be lists of
    numbers.
    """

    task: str | None = None
    """Names each row's task; without it a file, or a dataset, is a task."""
    episode: str | None = None
    """Names each row's episode; without it flags, or steps that begin anew, end one."""
    step: str | None = None
    """Orders the rows of an episode: a count or a time. Without it they stand in order."""
    observation: Names = None
    """What the policy sees."""
    action: Names = None
    """What was done."""
    next_observation: Names = None
    """What the step led to; without it the observation of the row that follows in its episode."""
    reward: str | None = None
    """What the step earned."""
    terminated: str | None = None
    """The process's own end, which nothing comes after."""
    truncated: str | None = None
    """The record is cut here, but the process went on."""
    parameter: Names = None
    """Numbers that say what differs between tasks, constant in each; for pictures only."""
    shifted: tuple[Literal["action", "reward", "terminated", "truncated"], ...] = ()
    """What stands one row late: beside the observation that the step led to, not the one that it began from."""
    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    """Least and largest value of action columns, where known; null where one side is not."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Units of columns, for people."""

    @classmethod
    def load(cls, path: str | Path) -> ColumnMap:
        """Read it from a YAML file; raises DatasetError, one sentence, for a bad one."""
        return cls.of(read_yaml(Path(path), DatasetError), str(path))

    @classmethod
    def of(cls, values: Any, where: str = "The column map") -> ColumnMap:
        """Of a mapping of fields; raises DatasetError, naming `where`, for what is none."""
        if not isinstance(values, Mapping):
            raise DatasetError(f"{where} holds no map; it should say, line by line, such as `reward: earned`.")
        types = hints(cls)
        for name, value in values.items():
            if name not in types:
                raise DatasetError(f"In {where} {unknown(str(name), types)}")
            try:
                values = {**values, name: validated(str(name), types[name], value)}
            except ConfigError as error:
                raise DatasetError(f"In {where} {error}") from None
        made = cls(**values)
        for column, (low, high) in made.bounds.items():
            if bad := [side for side in (low, high) if side is not None and not abs(side) < LARGEST]:
                raise DatasetError(
                    f"In {where} a bound of {column} is {bad[0]}; it must be below {LARGEST:g} in size, or null where "
                    f"it is not known."
                )
            if low is not None and high is not None and not low < high:
                raise DatasetError(f"In {where} the bounds of {column} are {low} to {high}; the first must be less.")
        return made

    def described(self) -> dict[str, Any]:
        """What it says, as JSON."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) not in (None, (), {})}

    def vector(self, role: str, available: Sequence[str], where: str) -> list[str]:
        """The columns of a role; none where it may be left out and is. Raises DatasetError."""
        given = getattr(self, role)
        wanted = DEFAULTS.get(role, ()) if given is None else (given,) if isinstance(given, str) else given
        if role in _NEEDED and not wanted:
            raise DatasetError(f"The column map has no column for {role}; say which it is, such as `{role}: name`.")
        found = [_matching(pattern, available) for pattern in wanted]
        if given is None:
            names = next((names for names in found if names), [])
            if not names and role in _NEEDED:
                raise DatasetError(
                    f"{where} has no {role}: no column is named {' or '.join(wanted)}. {_there(available)} A column "
                    f"map (--columns) says which it is, such as `{role}: name`."
                )
            return names
        for pattern, names in zip(wanted, found, strict=True):
            if not names:
                raise DatasetError(
                    f"{where} has no column {pattern}, which the column map names as {role}. {_there(available)}"
                )
        names = [name for part in found for name in part]
        if len(set(names)) < len(names):
            raise DatasetError(f"The column map names a column twice as {role}: {', '.join(names)}.")
        return names

    def scalar(self, role: str, available: Sequence[str], where: str) -> str | None:
        """The column of a role that has one; None where it may be left out and is. Raises DatasetError."""
        names = self.vector(role, available, where)
        if len(names) > 1:
            raise DatasetError(f"{where}: {role} must be one column, not {', '.join(names)}.")
        return names[0] if names else None

    def columns(self, available: Sequence[str], where: str) -> dict[str, list[str]]:
        """The columns of every role that there is; raises DatasetError for what is missing or ambiguous."""
        found = {role: self.vector(role, available, where) for role in (*VECTORS, "parameter")}
        found |= {role: [name] for role in SCALARS if (name := self.scalar(role, available, where))}
        if not found.keys() & {"terminated", "truncated"} and (done := [n for n in _AMBIGUOUS if n in available]):
            raise DatasetError(
                f"{where} has {done[0]}, which does not say whether the process ended or only the record; say so in a "
                f"column map (--columns): `terminated: {done[0]}` or `truncated: {done[0]}`."
            )
        return {role: names for role, names in found.items() if names}


SCALARS = ("task", "episode", "step", "reward", "terminated", "truncated")


def raw_of(
    name: str, where: str, columns: Mapping[str, list[str]], get: Callable[[str], np.ndarray], given: ColumnMap
) -> Raw:
    """One task of a file: its columns by role, got by name, as arrays of equal length. Raises DatasetError."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    for role, wanted in columns.items():
        if role in (*VECTORS, "parameter"):
            parts = [as_matrix(get(column), column, where) for column in wanted]
            if len({len(part) for part in parts}) > 1:
                raise DatasetError(f"{where}: the columns {', '.join(wanted)} differ in length.")
            arrays[role] = np.concatenate(parts, 1) if len(parts) > 1 else parts[0]
            names[role] = [n for column, part in zip(wanted, parts, strict=True) for n in _named(column, part.shape[1])]
        elif role != "task":
            arrays[role], names[role] = get(wanted[0]), wanted
    parameter = None
    if "parameter" in arrays:
        parameter = _constant(arrays.pop("parameter"), names.pop("parameter"), name, where)
    if strangers := given.bounds.keys() - {*names["action"]}:
        raise DatasetError(
            f"The column map gives bounds of {min(strangers)}, which is no action of {where}; those are "
            f"{', '.join(names['action'])}."
        )
    return Raw(name, where, arrays, names, parameter, given.bounds, given.shifted)


def as_matrix(column: np.ndarray, name: str, where: str) -> np.ndarray:
    """Numbers `[N, d]` of a column `[N]` or `[N, d]`; raises DatasetError for anything else."""
    if column.dtype.kind not in "fiub":
        raise DatasetError(f"{where}: column {name} holds {_kind(column)}; it must hold numbers.")
    if column.ndim > 2:
        raise DatasetError(
            f"{where}: column {name} has shape {column.shape}; images and other arrays are not supported, only vectors "
            f"of numbers."
        )
    if column.ndim == 2 and column.shape[1] == 0:
        raise DatasetError(f"{where}: column {name} holds empty lists; it must hold numbers.")
    return column if column.ndim == 2 else column.reshape(-1, 1)


def _kind(column: np.ndarray) -> str:
    kinds = {"c": "complex numbers", "V": "records", "M": "times", "m": "durations"}
    return kinds.get(column.dtype.kind, "text or lists of different lengths")


def _constant(values: np.ndarray, names: list[str], task: str, where: str) -> list[float]:
    for column, own in zip(names, values.T, strict=True):
        if len(own) and not (abs(own[0]) < LARGEST and (own == own[0]).all()):
            raise DatasetError(
                f"{where}, task {task}: {column} is a parameter, but it is not one finite number below {LARGEST:g}."
            )
    return [float(value) for value in values[0]] if len(values) else []


def _named(column: str, width: int) -> list[str]:
    return [column] if width == 1 else [f"{column}[{i}]" for i in range(width)]


def _matching(pattern: str, available: Sequence[str]) -> list[str]:
    if pattern in available:
        return [pattern]
    return sorted(fnmatch.filter(available, pattern), key=natural)


def natural(name: str) -> list[Any]:
    """A key for sorting that puts x_2 before x_10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _there(available: Sequence[str]) -> str:
    shown = ", ".join(map(str, available[:12])) + (", ..." if len(available) > 12 else "")
    return f"It has {shown}." if available else "It has no columns."
