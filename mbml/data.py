"""The offline dataset on disk: a directory of Arrow shards per task distribution, read through memory maps.

    root/meta.json                  what it is, every task, the SHA-256 of every shard; written last
    root/task=003/part-0000.arrow   Arrow IPC file, uncompressed, one record batch, rows in their order

The columns and the rules for rows are those of `mbml.transitions`. Only Arrow and JSON are ever read.
"""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import pyarrow as pa
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from mbml.reading import regular
from mbml.scaling import Scaling, ScalingMeta
from mbml.serialise import json_of, replacing, sha256_of
from mbml.settings import Count, Whole
from mbml.transitions import (
    DTYPES,
    VECTORS,
    DatasetError,
    TransitionBatch,
    check_actions,
    check_episodes,
    check_finite,
    concatenate,
)

__all__ = ["Dataset", "DatasetError", "DatasetWriter", "TransitionBatch", "validate"]

_SAME = ("environment", "observation_size", "action_size", "horizon")


class ShardMeta(TypedDict):
    """A file of a task."""

    file: Annotated[str, Field(pattern=r"^task=\d+/part-\d+\.arrow$")]
    rows: Count
    sha256: str


class TaskMeta(TypedDict):
    """A task. `parameter` is None where it is not known."""

    index: Whole
    label: str
    parameter: Any
    rows: Count
    episodes: Count
    shards: list[ShardMeta]


class Meta(TypedDict):
    """meta.json. `horizon` is the time limit in steps; `collection` says how the data came about; `scaling`, of logged
    data, what their own scale was."""

    schema_version: Literal[1]
    environment: str
    observation_size: Count
    action_size: Count
    horizon: Count
    collection: dict[str, Any]
    scaling: NotRequired[ScalingMeta]
    tasks: list[TaskMeta]
    totals: dict[str, int]


@dataclass
class DatasetWriter(AbstractContextManager):
    """Writes one dataset directory; a context manager that completes it on a normal exit only.

    Opening a directory that holds a dataset takes its meta.json away first: it is incomplete until closed
    again, and tasks that are not added again are no longer part of it.
    """

    root: str | Path
    _: KW_ONLY
    environment: str
    observation_size: int
    action_size: int
    horizon: int
    """The time limit in steps."""
    collection: Mapping[str, Any]
    """How the data came about, as JSON."""
    scaling: Scaling | None = field(default=None, init=False)
    """Of rows that are not in the scale that they were logged in; to be set before the end."""

    def __post_init__(self) -> None:
        for name in ("observation_size", "action_size", "horizon"):
            if (value := getattr(self, name)) < 1:
                raise DatasetError(f"{name} is {value}; it must be at least 1.")
        json_of(dict(self.collection), "The collection", DatasetError)
        self._root, self._tasks = Path(self.root), dict[int, TaskMeta]()
        (self._root / "meta.json").unlink(missing_ok=True)

    def add_task(
        self, index: int, batch: TransitionBatch, *, parameter: Any, label: str, shard_rows: int = 1_000_000
    ) -> None:
        """Write all transitions of one task, at most `shard_rows` to a file, in order.

        `parameter` is the task's parameter as JSON, `label` a short name for people.

        Raises:
            DatasetError: the task is there already or is empty, a shape or dtype is wrong, or a number is not
                finite. (The order of rows is `validate`'s business.)
        """
        if index < 0 or index in self._tasks:
            raise DatasetError(f"Task {index} cannot be added: an index is 0 or more and is used once.")
        if shard_rows < 1:
            raise DatasetError(f"shard_rows is {shard_rows}; it must be at least 1.")
        batch.check(self.observation_size, self.action_size)
        if len(batch) == 0:
            raise DatasetError(f"Task {index} has no rows; a task needs at least one transition.")
        check_finite(batch, f"Task {index}")
        json_of(parameter, f"The parameter of task {index}", DatasetError)
        folder = f"task={index:03d}"
        shutil.rmtree(self._root / folder, ignore_errors=True)  # shards of an earlier, unfinished attempt
        shards = []
        for number, start in enumerate(range(0, len(batch), shard_rows)):
            file, part = f"{folder}/part-{number:04d}.arrow", batch.rows(start, start + shard_rows)
            shards.append(ShardMeta(file=file, rows=len(part), sha256=_write_shard(self._root / file, part)))
        episodes = 1 + int(np.count_nonzero(np.diff(batch.episode)))
        self._tasks[index] = TaskMeta(
            index=int(index), label=str(label), parameter=parameter, rows=len(batch), episodes=episodes, shards=shards
        )

    def close(self) -> None:
        """Write meta.json, which completes the dataset."""
        tasks = [self._tasks[index] for index in sorted(self._tasks)]
        same = {name: getattr(self, name) for name in _SAME}
        meta = Meta(schema_version=1, **same, collection=dict(self.collection), tasks=tasks, totals=_totals(tasks))
        if self.scaling is not None:
            meta["scaling"] = self.scaling.meta
        with replacing(self._root / "meta.json") as path:
            path.write_text(json_of(meta, "meta.json", DatasetError))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()


@dataclass(frozen=True)
class Dataset:
    """Tasks of one family from one or more directories; rows stay on disk until they are touched. Made by `open`."""

    header: Mapping[str, Any]
    """What all directories share: `environment`, `observation_size`, `action_size` and `horizon`."""
    _tasks: Mapping[int, tuple[Path, TaskMeta]]
    """Directory and entry in meta.json of each task."""
    scaling: Scaling | None = None
    """How to get back to the scale that the rows were logged in; None where they are in it."""
    collection: Mapping[str, Any] = field(default_factory=dict)
    """How the data of the first directory came about."""

    @classmethod
    def open(cls, *roots: str | Path) -> "Dataset":
        """Open directories that hold different tasks of the same environment; reads only each meta.json.

        Raises:
            DatasetError: a directory is missing, incomplete or damaged, does not fit the first one, or has a
                task that another one has.
        """
        if not roots:
            raise DatasetError("Dataset.open needs at least one directory.")
        metas = [(path, _read_meta(path)) for path in map(Path, roots)]
        (first, meta), collection = metas[0], metas[0][1]["collection"]
        header: dict[str, Any] = {name: meta[name] for name in _SAME}
        scaling = meta.get("scaling")
        tasks: dict[int, tuple[Path, TaskMeta]] = {}
        for path, meta in metas:
            for name, wanted in header.items():
                if meta[name] != wanted:
                    raise DatasetError(f"{path} has {name} {meta[name]}, but {first} has {wanted}.")
            if meta.get("scaling") != scaling:
                raise DatasetError(f"{path} is scaled otherwise than {first}; import their logs together.")
            for task in meta["tasks"]:
                if (index := task["index"]) in tasks:
                    raise DatasetError(f"Task {index} is in both {tasks[index][0]} and {path}; keep one.")
                tasks[index] = path, task
        return cls(header, tasks, None if scaling is None else Scaling(scaling), collection)

    @property
    def task_indices(self) -> tuple[int, ...]:
        """The tasks that there are, in order."""
        return tuple(sorted(self._tasks))

    def meta(self, index: int) -> TaskMeta:
        """The task's entry of meta.json: index, label, parameter, rows, episodes, shards; DatasetError without one."""
        if index not in self._tasks:
            raise DatasetError(f"There is no task {index}; this dataset has tasks {list(self.task_indices)}.")
        return self._tasks[index][1]

    def task(self, index: int) -> TransitionBatch:
        """All transitions of one task, in order: its only shard, or a copy of several together.

        Raises DatasetError for an unknown task or a damaged shard.
        """
        return concatenate(self.shards(index))

    def shards(self, index: int) -> list[TransitionBatch]:
        """The transitions of one task, shard by shard, in order.

        The float and integer columns are read-only views of the memory map, which they keep alive (Arrow keeps
        flags as bits, so those are copied: two bytes a row). Raises DatasetError as `task` does.
        """
        task, (root, _) = self.meta(index), self._tasks[index]
        schema = _schema(self.header["observation_size"], self.header["action_size"])
        return [_read_shard(root / shard["file"], shard["rows"], schema) for shard in task["shards"]]

    def check(self, index: int) -> None:
        """Raise DatasetError for an unknown task, or a shard that is not what meta.json says by its SHA-256."""
        for shard in self.meta(index)["shards"]:
            path = self._tasks[index][0] / shard["file"]
            if sha256_of(path) != shard["sha256"]:
                raise DatasetError(f"{path} has another SHA-256 than meta.json says: it is changed or damaged.")


def validate(root: str | Path, checksums: bool = True) -> None:
    """Read a whole dataset directory; raise DatasetError at its first fault, naming the file and the fault.

    Checked: meta.json and its counts; each shard's SHA-256 (unless `checksums` is False), columns and row
    count; all numbers finite; actions in [-1, 1]; and the order of rows (`mbml.transitions.check_episodes`).
    """
    dataset = Dataset.open(root)
    for index in dataset.task_indices:
        task = dataset.meta(index)
        paths = [str(Path(root, shard["file"])) for shard in task["shards"]]
        if checksums:
            dataset.check(index)
        shards = list(zip(paths, dataset.shards(index), strict=True))
        for path, batch in shards:
            check_finite(batch, path)
            check_actions(batch, path)
        if (said := task["episodes"]) != (found := check_episodes(shards, dataset.header["horizon"])):
            raise DatasetError(f"{Path(root, 'meta.json')} gives task {index} {said} episodes; it has {found}.")


def _schema(observation_size: int, action_size: int) -> pa.Schema:
    types = {name: pa.from_numpy_dtype(dtype) for name, dtype in DTYPES.items()}
    for name, size in zip(VECTORS, (observation_size, action_size, observation_size), strict=True):
        types[name] = pa.list_(types[name], size)
    return pa.schema(types)


def _write_shard(path: Path, batch: TransitionBatch) -> str:
    """Write one shard and return its SHA-256."""
    schema = _schema(batch.observation.shape[1], batch.action.shape[1])
    columns = pa.record_batch([to_arrow(getattr(batch, name)) for name in DTYPES], schema=schema)
    with replacing(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(columns)
        return sha256_of(temporary)


def to_arrow(column: np.ndarray) -> pa.Array:
    """A column `[n]`, or `[n, size]` as lists of that size."""
    flat = pa.array(np.ascontiguousarray(column).reshape(-1))
    return flat if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, column.shape[1])


def _read_shard(path: Path, size: int, schema: pa.Schema) -> TransitionBatch:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate()
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path} is not a readable Arrow IPC file ({error}).") from error
    if table.schema != schema:
        columns = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        raise DatasetError(f"{path} has the wrong columns: {columns}.")
    if (rows := [len(chunk) for chunk in table["step"].chunks]) != [size]:
        raise DatasetError(f"{path} must be one record batch of {size} rows; it has batches of {rows}.")
    if any(column.null_count for column in table.columns):
        raise DatasetError(f"{path} has nulls; every value must be there.")
    return TransitionBatch(**{name: _to_numpy(table[name].chunk(0)) for name in DTYPES})


def _to_numpy(column: pa.Array) -> np.ndarray:
    """A view where Arrow's layout allows one: everything but booleans, which Arrow keeps as bits."""
    if isinstance(column, pa.FixedSizeListArray):
        return column.flatten().to_numpy().reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=column.type != pa.bool_())


def _read_meta(root: Path) -> Meta:
    """meta.json of a dataset directory, its form and counts checked, every shard known to exist."""
    path = root / "meta.json"
    try:
        meta = TypeAdapter(Meta).validate_json(regular(path).read_bytes(), strict=True)
    except OSError as error:
        inside = [file.parent for depth in range(1, 5) for file in sorted(root.glob("*/" * depth + "meta.json"))]
        right = " or ".join(map(str, inside[:3])) or "<store>/collect/<key>/dataset"
        fault = f"{path} is missing or unreadable, so {root} is no complete dataset ({error.strerror})"
        raise DatasetError(f"{fault}; give {right}.") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise DatasetError(f"{path} is damaged{place and f' at {place}'}: {fault['msg']}.") from None
    for task in meta["tasks"]:
        for shard in task["shards"]:
            if not (root / shard["file"]).is_file():
                raise DatasetError(f"{root / shard['file']} is missing, but meta.json lists it.")
        if task["rows"] != sum(shard["rows"] for shard in task["shards"]):
            raise DatasetError(f"{path} gives task {task['index']} {task['rows']} rows, its shards another number.")
    if (scaling := meta.get("scaling")) is not None:
        for part, size in zip(("observation", "action"), (meta["observation_size"], meta["action_size"]), strict=True):
            if {len(scaling[part][name]) for name in ("offset", "scale", "names")} != {size}:
                raise DatasetError(f"{path} has a scaling of another size than its {part}.")
    if len({task["index"] for task in meta["tasks"]}) != len(meta["tasks"]):
        raise DatasetError(f"{path} lists a task twice.")
    if meta["totals"] != _totals(meta["tasks"]):
        raise DatasetError(f"{path} has totals {meta['totals']}; its tasks make {_totals(meta['tasks'])}.")
    return meta


def _totals(tasks: list[TaskMeta]) -> dict[str, int]:
    return {"tasks": len(tasks)} | {name: sum(task[name] for task in tasks) for name in ("rows", "episodes")}
