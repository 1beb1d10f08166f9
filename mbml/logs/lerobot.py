"""LeRobot datasets, version 3: Parquet files of frames. Videos and images are not read.

The task of a frame is its `task_index`, named by `meta/tasks.parquet`. A reward (`next.reward`) must be there, which
most recordings of demonstrations lack. `next.done` marks the last frame of every recording, finished or not, so it cuts
and does not terminate, unless the column map says `terminated: next.done`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mbml.logs import tables
from mbml.logs.columns import ColumnMap
from mbml.logs.contract import Raw, Source
from mbml.transitions import DatasetError

_STANDS_FOR = {
    "task": "task_index", "episode": "episode_index", "step": "frame_index", "action": "action",
    "reward": "next.reward", "truncated": "next.done",
}  # fmt: skip
_OBSERVATIONS = ("observation.state", "observation.environment_state")


def holds(path: str) -> bool:
    """A folder with a meta/info.json."""
    return Path(path, "meta", "info.json").is_file()


def files(paths: Sequence[str]) -> list[str]:
    """All files of the folders but videos and images."""
    return [
        str(f) for p in paths for kind in ("meta", "data") for f in sorted(Path(p, kind).rglob("*")) if not f.is_dir()
    ]


def read(source: Source) -> Iterator[Raw]:
    """The tasks of every folder."""
    for path in source.paths:
        info = _info(path)
        names = tables.files([str(Path(path, "data"))], [".parquet"])
        given = _completed(source.columns, list(info["features"]))
        columns = given.columns(list(info["features"]), path)
        table = tables.load(names, columns)
        labels = _labels(Path(path, "meta", "tasks.parquet")) if columns["task"] == ["task_index"] else {}
        for raw in tables.by_task(table, columns, path, given):
            yield replace(_renamed(raw, columns, info["features"]), name=labels.get(raw.name, raw.name))


def _info(path: str) -> dict[str, Any]:
    file = Path(path, "meta", "info.json")
    try:
        info = json.loads(file.read_text())
        version, features = str(info["codebase_version"]), info["features"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file} is missing or damaged ({type(error).__name__}: {error}).") from None
    if not version.startswith("v3"):
        raise DatasetError(
            f"{path} is a LeRobot dataset of version {version}; convert it to v3.0 with LeRobot's script."
        )
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise DatasetError(f"{file} is damaged: its features are no map of maps.")
    return info


def _completed(given: ColumnMap, features: list[str]) -> ColumnMap:
    """The map with LeRobot's own names where the user's is silent."""
    own: dict[str, Any] = {role: column for role, column in _STANDS_FOR.items() if column in features}
    if there := tuple(name for name in _OBSERVATIONS if name in features):
        own["observation"] = there
    if "next.reward" not in features and given.reward is None:
        own["reward"] = "next.reward"
    if given.terminated == own.get("truncated"):
        own.pop("truncated", None)
    return replace(given, **{role: column for role, column in own.items() if getattr(given, role) is None})


def _renamed(raw: Raw, columns: dict[str, list[str]], features: dict[str, Any]) -> Raw:
    """The task with the names of the dimensions that info.json gives."""
    names = dict(raw.names)
    for role in ("observation", "action"):
        found = [_dimensions(features[column].get("names")) for column in columns[role]]
        flat = [name for part in found for name in part]
        if len(flat) == len(names[role]) == len(set(flat)):
            names[role] = flat
    return replace(raw, names=names)


def _dimensions(names: Any) -> list[str]:
    if isinstance(names, dict):
        return [name for part in names.values() for name in _dimensions(part)]
    return [str(name) for name in names] if isinstance(names, list) else [str(names)] if names else []


def _labels(file: Path) -> dict[str, str]:
    """Names of the tasks by their index as text."""
    if not file.is_file():
        return {}
    table = tables.opened(str(file))
    if "task_index" not in table.column_names:
        raise DatasetError(f"{file} has no column task_index.")
    text = next((name for name in table.column_names if name != "task_index"), None)
    index = tables.to_numpy(table["task_index"], "task_index", str(file))
    named = tables.to_numpy(table[text], text, str(file)) if text else np.array([])
    return {str(i): str(name) for i, name in zip(index, named, strict=False)}
