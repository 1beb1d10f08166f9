"""Logs of any known format into one dataset directory: read twice, once for the scale and once to write."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mbml.data import DatasetWriter
from mbml.logs import FORMATS, ColumnMap, Counts, LoggedTask, Source, format_of, transitions
from mbml.reading import regular
from mbml.scaling import Scaling, Statistics
from mbml.serialise import replacing_folder, sha256_of
from mbml.transitions import DatasetError

_VERSION = 1
"""Part of the key; raised when the same logs would make other rows."""
_PATIENCE = 10.0
"""Seconds between two words about how far it is."""

Log = Callable[[str], None]


def import_logs(
    data: Sequence[str],
    out: str | Path,
    columns: ColumnMap | None = None,
    *,
    kind: str | None = None,
    drop_bad_rows: bool = False,
    held_out: Collection[str] = (),
    seed: int = 0,
    beside: bool = False,
    log: Log = print,
) -> Path:
    """Write the tasks at `data` as a dataset of environment "logged" to the folder `out`, in the scale of learners.

    `kind` names the format, which is guessed without it. Tasks that are `held_out`, by name or as one number between 0
    and 1, a share of them drawn with the `seed`, are written behind the others and have no part in the scale;
    meta.json names them. A second call for the same content finds the folder there.

    Where `out` holds something else and `beside` is true, that stays, and the dataset goes to a folder beside it that
    has its key in its name. Returns the folder.

    Raises:
        DatasetError: a file, column or row is wrong, fewer than two tasks are left beside those held out, or the folder
            holds something else. Nothing is written then.
    """
    try:
        logs = _Logs.of(data, columns or ColumnMap(), kind, drop_bad_rows, log)
        return _import(logs, Path(out), _HeldOut(held_out, seed), beside)
    except DatasetError as error:  # names of columns, which it repeats, may hold anything
        raise DatasetError(" ".join(str(error).split())) from None


def _import(logs: _Logs, out: Path, held_out: _HeldOut, beside: bool) -> Path:
    key, log = logs.key(held_out.described()), logs.log
    try:
        there = _there(out, key)
    except DatasetError:
        if not beside:
            raise
        taken, out = out, out.with_name(f"{out.name}-{key}")
        log(f"{taken} is of other logs or other rules and stays; this dataset is {out}.")
        there = _there(out, key)
    if there:
        log(f"{out} is there already, made of the same logs.")
        return out
    scaling, horizon, counts, last = _survey(logs, held_out)
    for line in scaling.lines():
        log(line)
    about = {**logs.described(), "key": key, "counts": counts._asdict(), "held_out": last}
    with replacing_folder(out) as temporary:
        _write(logs, temporary, scaling, horizon, about)
        if out.is_dir():
            out.rmdir()  # empty, which _there has seen; what has come since is never replaced
    log(_summary(out, len(logs.names), counts))
    return out


_NAMED = 20


@dataclass(frozen=True)
class _HeldOut:
    """Which tasks are not learned from: their names, or one number between 0 and 1, a share drawn with a seed."""

    asked: Collection[str]
    seed: int

    @property
    def _share(self) -> float | None:
        with suppress(ValueError):
            (share,) = map(float, self.asked)
            return share if 0 < share < 1 else None
        return None

    def described(self) -> list[str]:
        """For the key."""
        return [*sorted(self.asked), *([f"seed {self.seed}"] if self._share else [])]

    def among(self, names: list[str]) -> list[str]:
        """The tasks; of a share at least one, and not so many that fewer than two are left. Raises DatasetError where
        that cannot be."""
        if (share := self._share) and not set(self.asked) <= set(names):
            number = max(1, min(round(share * len(names)), len(names) - 2))
            drawn = np.random.default_rng(self.seed).permutation(len(names))[:number]
            chosen = [names[i] for i in sorted(drawn)]
        elif strangers := set(self.asked) - set(names):
            there = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            right = f"give a share between 0 and 1, or names of tasks: {there}"
            raise DatasetError(f"There is no task {min(strangers)} to hold out; {right}.")
        else:
            chosen = [name for name in names if name in self.asked]
        if chosen and (left := len(names) - len(chosen)) < 2:
            fault = f"Of {len(names)} in all, tasks to learn from would be {left}, held out {len(chosen)}"
            raise DatasetError(f"{fault}; at least 2 and 1 are needed.")
        return chosen


@dataclass
class _Logs:
    """What is read, how, and what was seen of it."""

    format: str
    source: Source
    drop_bad_rows: bool
    log: Log
    names: list[str] = field(default_factory=list)
    """Of the tasks."""

    @classmethod
    def of(cls, data: Sequence[str], columns: ColumnMap, kind: str | None, drop_bad_rows: bool, log: Log) -> _Logs:
        if not data or not all(map(str.strip, data)):
            raise DatasetError("Say where the logs are: files, folders or ids of datasets, none of them empty.")
        entry = FORMATS[kind] if kind else format_of(data)
        return cls(entry.name, Source(tuple(data), columns), drop_bad_rows, log)

    def described(self) -> dict[str, Any]:
        """How the data came about, as JSON."""
        names = [Path(path).name for path in self.source.paths]
        said = {"columns": self.source.columns.described(), "drop_bad_rows": self.drop_bad_rows}
        return {"method": "import", "format": self.format, "of": names, **said}

    def key(self, held_out: list[str]) -> str:
        """A hash of the content of all files and of how they are read."""
        files = FORMATS[self.format].files(self.source.paths)
        if twice := [file for file, number in Counter(map(os.path.abspath, files)).items() if number > 1]:
            raise DatasetError(f"{twice[0]} would be read twice; give it once.")
        progress = _Progress(self.log, "Looking at the files", len(files), "files")
        seen = []
        for done, file in enumerate(files):
            progress(done, 0)
            try:
                seen.append((Path(file).name, sha256_of(Path(file))))
            except OSError as error:
                raise DatasetError(f"{file} is not readable ({error.strerror}).") from None
        said = [_VERSION, {**self.described(), "of": seen}, held_out]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def tasks(self, doing: str) -> Iterator[LoggedTask]:
        """The tasks as transitions, one after the other; what is done with each is in the progress."""
        progress, rows = _Progress(self.log, doing, len(self.names), "tasks"), 0
        for number, raw in enumerate(FORMATS[self.format].make(self.source)):
            task = transitions(raw, self.drop_bad_rows)
            yield task
            rows += len(task.batch)
            progress(number + 1, rows)


def _there(out: Path, key: str) -> bool:
    """Whether the folder holds this very dataset; raises DatasetError where it holds anything else."""
    try:
        made = json.loads(regular(out / "meta.json").read_text())["collection"]["key"] if out.exists() else None
    except (OSError, ValueError, KeyError, TypeError):
        made = None
    if made != key and out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "made of other logs or by other rules" if made else "which is no imported dataset"
        raise DatasetError(f"{out} is there already, {what}; choose another --out, or delete it.")
    return made == key


def _survey(logs: _Logs, held_out: _HeldOut) -> tuple[Scaling, int, Counts, list[str]]:
    """Read all once: the scale, the longest episode, what became of the rows, and which tasks are held out."""
    statistics: Statistics | None = None
    first: LoggedTask | None = None
    counts, horizon = Counts(), 0
    for task in logs.tasks("Reading"):
        if first is None or statistics is None:
            first, names = task, {part: task.raw.names[part] for part in ("observation", "action")}
            statistics = Statistics(names, task.raw.bounds, logs.source.columns.units)
        _refuse_other_columns(first, task)
        if task.name in logs.names:
            raise DatasetError(f"{task.raw.where} has a second task {task.name}; every task needs a name of its own.")
        logs.names.append(task.name)
        counts, horizon = counts.plus(task.counts), max(horizon, int(task.batch.step.max()) + 1)
        statistics.add(task.batch)
    if statistics is None:
        raise DatasetError(f"{' and '.join(logs.source.paths)} hold no task.")
    last = held_out.among(logs.names)
    try:
        fitted = statistics.only(i for i, name in enumerate(logs.names) if name not in last)
        return fitted.scaling(), horizon, counts, last
    except DatasetError as error:
        raise DatasetError(f"{' and '.join(logs.source.paths)}: {error}") from None


def _refuse_other_columns(first: LoggedTask, task: LoggedTask) -> None:
    for part in ("observation", "action"):
        mine, others = task.raw.names[part], first.raw.names[part]
        if mine != others:
            raise DatasetError(
                f"{task.raw.where}, task {task.name} has the {part} {', '.join(mine)}, but task {first.name} has "
                f"{', '.join(others)}; all tasks need the same columns."
            )


def _write(logs: _Logs, folder: Path, scaling: Scaling, horizon: int, about: dict[str, Any]) -> None:
    meta = scaling.meta
    sizes = {f"{part}_size": len(meta[part]["names"]) for part in ("observation", "action")}
    with DatasetWriter(folder, environment="logged", horizon=horizon, collection=about, **sizes) as writer:
        writer.scaling = scaling
        order = sorted(range(len(logs.names)), key=lambda place: logs.names[place] in about["held_out"])
        index = {place: index for index, place in enumerate(order)}  # what is held out stands behind the others
        for place, task in enumerate(logs.tasks("Writing")):
            batch = scaling.scaled(task.batch)
            # The longest episode ends at the time limit, which is its own length, however it ended.
            batch = replace(batch, truncated=batch.truncated | (batch.step == horizon - 1))
            writer.add_task(index[place], batch, parameter=task.raw.parameter, label=task.name)


@dataclass
class _Progress:
    """Says how far it is and how fast, every ten seconds; nothing about what is done by then."""

    log: Log
    doing: str
    total: int
    unit: str
    _started: float = field(default_factory=time.monotonic)
    _said: float = 0.0

    def __call__(self, done: int, rows: int) -> None:
        spent = time.monotonic() - self._started
        if spent - self._said < _PATIENCE:
            return
        self._said = spent
        total = f" of {self.total}" if self.total else ""
        rate = f", {rows:,} rows, {rows / spent:,.0f} rows/s" if rows else ""
        self.log(f"{self.doing}: {done}{total} {self.unit}{rate}")


def _summary(out: Path, tasks: int, counts: Counts) -> str:
    dropped = {
        "with numbers that are not finite": counts.bad,
        "last in their episode, for nothing says what they led to": counts.unfollowed,
    }
    said = [f"{number:,} {why}" for why, number in dropped.items() if number]
    lost = f"; {counts.bad + counts.unfollowed:,} rows dropped ({', '.join(said)})" if said else "; no row dropped"
    cuts = f"; {counts.cuts:,} cuts where rows are missing" if counts.cuts else ""
    return f"{out}: {tasks} tasks, {counts.rows:,} rows, {counts.episodes:,} episodes{lost}{cuts}."
