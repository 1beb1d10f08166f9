"""Files of arrays, one a task: HDF5 in the layout of D4RL, and NumPy's .npz (never anything pickled)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mbml.logs import tables
from mbml.logs.columns import ColumnMap, raw_of
from mbml.logs.contract import Raw, Source, readable
from mbml.transitions import DatasetError

ENDINGS = {"hdf5": (".hdf5", ".h5", ".hdf"), "npz": (".npz",)}


def holds_hdf5(path: str) -> bool:
    """A file that ends like HDF5, or a folder of them that is no Minari dataset."""
    return _holds(path, ENDINGS["hdf5"])


def holds_npz(path: str) -> bool:
    """A file that ends in .npz, or a folder of them."""
    return _holds(path, ENDINGS["npz"])


def _holds(path: str, endings: Sequence[str]) -> bool:
    return Path(path).suffix in endings or (
        Path(path).is_dir() and any(f.suffix in endings for f in Path(path).iterdir())
    )


def hdf5_files(paths: Sequence[str]) -> list[str]:
    """The files of a source."""
    return tables.files(paths, ENDINGS["hdf5"])


def npz_files(paths: Sequence[str]) -> list[str]:
    """The files of a source."""
    return tables.files(paths, ENDINGS["npz"])


def read_hdf5(source: Source) -> Iterator[Raw]:
    """The task of every file; `infos/...` and other groups are there by their path, if the column map names them."""
    names = hdf5_files(source.paths)
    for name, task in zip(names, tables.task_names(names), strict=True):
        with opened_hdf5(name) as file:
            paths: list[str] = []
            file.visit(paths.append)
            arrays = {path: file[path] for path in paths if hasattr(file[path], "shape")}
            raw = _raw(arrays, task, name, source.columns)
        yield raw


@contextmanager
def opened_hdf5(name: str) -> Iterator[Any]:
    """The file; raises DatasetError for one whose data lie in other files, which could be any of this machine."""
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DatasetError("HDF5 needs the package h5py; install it with pip install h5py.") from None

    def linked(path: str, link: Any) -> str | None:
        return path if isinstance(link, h5py.ExternalLink) else None

    def elsewhere(path: str, item: Any) -> str | None:
        return path if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual) else None

    with readable(name, "HDF5"), h5py.File(name, "r") as file:
        if found := file.visititems_links(linked) or file.visititems(elsewhere):
            raise DatasetError(f"{name}: {found} takes its data from another file; the file must hold them itself.")
        yield file


def read_npz(source: Source) -> Iterator[Raw]:
    """The task of every file."""
    names = npz_files(source.paths)
    for name, task in zip(names, tables.task_names(names), strict=True):
        with readable(name, ".npz"), np.load(name, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DatasetError(f"{name} is a single array; an .npz file of named arrays is needed.")
            raw = _raw(file, task, name, source.columns)
        yield raw


def _raw(arrays: Mapping[str, Any], task: str, name: str, given: ColumnMap) -> Raw:
    columns = given.columns(list(arrays), name)

    def get(column: str) -> np.ndarray:
        array = np.asarray(arrays[column])
        array = array.astype(str) if array.dtype.kind == "S" else array
        if array.ndim == 0:
            raise DatasetError(f"{name}: {column} is a single value; it needs a row for every transition.")
        return array

    if "task" in columns:
        raise DatasetError(f"{name}: a file of arrays is one task; leave `task` out, or bring a table.")
    raw = raw_of(task, name, columns, get, given)
    action = arrays[columns["action"][0]]
    if len(columns["action"]) == 1 and len(action.shape) == 1 and action.dtype.kind in "iu":
        raise DatasetError(
            f"{name}: {columns['action'][0]} is one whole number a row; discrete actions are not supported."
        )
    return raw
