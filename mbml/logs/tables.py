"""Tables of rows: Parquet, Arrow (IPC, Feather) and CSV; one file or a folder of them.

With a column for the task all files are one table, which is held in memory while it is read. Without one every file is
a task, named as the file, and is read when it is its turn.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mbml.logs.columns import ColumnMap, natural, raw_of
from mbml.logs.contract import Raw, Source, readable
from mbml.transitions import DatasetError

ENDINGS = {
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "ipc", ".feather": "ipc", ".ipc": "ipc", ".csv": "csv",
}  # fmt: skip


def holds(path: str) -> bool:
    """A file with one of ENDINGS, or a folder that holds some."""
    return Path(path).suffix in ENDINGS or any(True for _ in _inside(Path(path), ENDINGS))


def files(paths: Sequence[str], endings: Sequence[str] = tuple(ENDINGS)) -> list[str]:
    """The files named, and those of a folder named, in natural order; raises DatasetError where there are none."""
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise DatasetError(f"{path} does not exist.")
        inside = sorted(_inside(path, endings), key=lambda file: natural(str(file))) if path.is_dir() else [path]
        if not inside:
            raise DatasetError(f"{path} holds no file that ends in {', '.join(endings)}.")
        found += map(str, inside)
    return found


def task_names(names: Sequence[str]) -> list[str]:
    """Of files that are a task each: their names without the ending, with folders or endings where those differ."""
    stems = [Path(name).stem for name in names]
    if len(set(stems)) == len(stems):
        return stems
    places = [os.path.abspath(name) for name in names]
    paths = [Path(os.path.relpath(place, os.path.commonpath(places))) for place in places]
    short = [str(path.with_suffix("")) for path in paths]
    return short if len(set(short)) == len(short) else list(map(str, paths))


def _inside(path: Path, endings: Sequence[str] | dict[str, str]) -> Iterator[Path]:
    if path.is_dir():
        found = (f for f in path.rglob("*") if f.suffix in endings and not f.name.startswith((".", "_")))
        yield from (file for file in found if not file.is_dir())


def read(source: Source) -> Iterator[Raw]:
    """The tasks of the tables of a source, in the order in which they first appear."""
    names = files(source.paths)
    first = _schema(names[0])
    if source.columns.scalar("task", first, names[0]) is None:
        for file, name in zip(names, task_names(names), strict=True):
            yield _task(load([file], _wanted(source.columns, _schema(file), file)), name, file, source)
        return
    where = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    for file in names[1:]:
        if missing := set(_flat(_wanted(source.columns, first, names[0]))) - set(_schema(file)):
            raise DatasetError(f"{file} has no column {min(missing)}, which {names[0]} has.")
    columns = _wanted(source.columns, first, where)
    yield from by_task(load(names, columns), columns, where, source.columns)


def by_task(table: pa.Table, columns: dict[str, list[str]], where: str, given: ColumnMap) -> Iterator[Raw]:
    """The tasks of one table, told apart by its column for the task."""
    [column] = columns["task"]
    labels = table[column].combine_chunks()
    if pa.types.is_nested(labels.type) or labels.null_count:
        raise DatasetError(f"{where}: {column} must name a task in every row.")
    codes = labels if isinstance(labels, pa.DictionaryArray) else labels.dictionary_encode()
    numbers = codes.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=len(codes.dictionary)))
    for number, label in enumerate(codes.dictionary.to_pylist()):
        rows = order[ends[number - 1] if number else 0 : ends[number]]
        yield _raw(table.take(pa.array(rows)), columns, str(label), where, given)


def load(names: Sequence[str], columns: dict[str, list[str]]) -> pa.Table:
    """The columns wanted of all files; raises DatasetError, naming the file."""
    parts = [opened(file, columns=sorted(set(_flat(columns)))) for file in names]
    with readable(f"{names[0]} and {len(names) - 1} more", "one table"):
        return pa.concat_tables(parts, promote_options="permissive")


def _task(table: pa.Table, name: str, file: str, source: Source) -> Raw:
    return _raw(table, _wanted(source.columns, table.column_names, file), name, file, source.columns)


def _raw(table: pa.Table, columns: dict[str, list[str]], name: str, where: str, given: ColumnMap) -> Raw:
    return raw_of(name, where, columns, lambda column: to_numpy(table[column], column, where), given)


def _wanted(given: ColumnMap, available: Sequence[str], where: str) -> dict[str, list[str]]:
    return given.columns(available, where)


def _flat(columns: dict[str, list[str]]) -> list[str]:
    return [name for names in columns.values() for name in names]


def _schema(file: str) -> list[str]:
    with readable(file, _format(file)):
        names = ds.dataset(file, format=_format(file)).schema.names
    if twice := {name for name in names if names.count(name) > 1}:
        raise DatasetError(f"{file} has two columns named {min(twice)}.")
    return names


def opened(file: str, columns: list[str] | None = None) -> pa.Table:
    """Columns of a file, all of them by default; raises DatasetError."""
    with readable(file, _format(file)):
        table = ds.dataset(file, format=_format(file)).to_table(columns=columns)
        table.validate(full=True)  # text that is none, and lists that end before they begin
    return table


def _format(file: str) -> str:
    return ENDINGS.get(Path(file).suffix, "parquet")


def to_numpy(column: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    """A column `[N]`, or `[N, d]` of lists; nulls of numbers become nan. Raises DatasetError for images and records."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(array, name, where)
    if pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_map(kind):
        raise DatasetError(f"{where}: column {name} is of type {kind}; images and records are not supported.")
    if pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    return array.to_numpy(zero_copy_only=False)


def _lists(array: pa.Array, name: str, where: str) -> np.ndarray:
    if not len(array):
        return np.zeros((0, 1))
    lengths = {array.type.list_size} if pa.types.is_fixed_size_list(array.type) else {*np.diff(array.offsets).tolist()}
    if array.null_count or len(lengths) > 1:
        raise DatasetError(f"{where}: column {name} holds lists of different lengths; every row needs the same number.")
    values = array.flatten()
    if pa.types.is_nested(values.type):
        raise DatasetError(f"{where}: column {name} holds lists of lists; images are not supported, only vectors.")
    return values.to_numpy(zero_copy_only=False).reshape(len(array), lengths.pop())
