"""Logs of other people's machines as this project's datasets: one reader a format, one place where rows become
transitions (`episodes`), one map of columns (`columns`), one scale (`mbml.scaling`)."""

import os
from collections.abc import Sequence

from mbml.logs import arrays, lerobot, minari_reader, own, tables
from mbml.logs.columns import ColumnMap
from mbml.logs.contract import Counts, LogFormat, LoggedTask, Raw, Source
from mbml.logs.episodes import transitions
from mbml.registry import Registry
from mbml.transitions import DatasetError

__all__ = ["FORMATS", "ColumnMap", "Counts", "LogFormat", "LoggedTask", "Raw", "Source", "format_of", "transitions"]

# A folder is of the first format that it looks like.
FORMATS = Registry(
    "format",
    LogFormat("dataset", "this project's dataset folder", own.read, holds=own.holds, files=own.files),
    LogFormat("lerobot", "LeRobot v3 folders", lerobot.read, holds=lerobot.holds, files=lerobot.files),
    LogFormat(
        "minari", "Minari ids or folders", minari_reader.read, holds=minari_reader.holds, files=minari_reader.files
    ),
    LogFormat("table", "Parquet, Arrow or CSV", tables.read, holds=tables.holds, files=tables.files),
    LogFormat("hdf5", "HDF5 as D4RL", arrays.read_hdf5, holds=arrays.holds_hdf5, files=arrays.hdf5_files),
    LogFormat("npz", "NumPy .npz", arrays.read_npz, holds=arrays.holds_npz, files=arrays.npz_files),
)


def format_of(paths: Sequence[str]) -> LogFormat:
    """The format that all of them look like; raises DatasetError where there is none."""
    for path in paths:
        if not os.path.exists(path):  # unlike Path's, for any name
            raise DatasetError(f"{path} does not exist (the id of a Minari dataset needs --format minari).")
    for entry in FORMATS.values():
        if all(entry.holds(path) for path in paths):
            return entry
    known = "; ".join(f"{entry.name}: {entry.about}" for entry in FORMATS.values())
    raise DatasetError(f"{' and '.join(paths)} look like no format that is known ({known}); say which with --format.")
