"""Minari datasets: a list of ids or folders, one a task, or one dataset whose episodes' metadata name their task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mbml.logs.arrays import opened_hdf5
from mbml.logs.columns import ColumnMap, as_matrix
from mbml.logs.contract import LARGEST, Bounds, Raw, Source, readable
from mbml.transitions import DatasetError


def holds(path: str) -> bool:
    """A folder of one dataset."""
    return _data(path) is not None


def _data(path: str) -> Path | None:
    return next((f for f in (Path(path), Path(path, "data")) if Path(f, "metadata.json").is_file() or (
        Path(f, "main_data.hdf5").is_file())), None)  # fmt: skip


def files(paths: Sequence[str]) -> list[str]:
    """All files of the datasets."""
    folders = [_folder(path) for path in paths]
    return [str(file) for folder in folders for file in sorted(folder.rglob("*")) if not file.is_dir()]


def _folder(path: str) -> Path:
    """Where a dataset's data are: of a folder, or of an id in Minari's own place."""
    if (folder := _data(path)) is not None:
        return folder
    try:
        from minari.storage.datasets_root_dir import get_dataset_path  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DatasetError(NEEDED) from None
    if (folder := _data(str(get_dataset_path(path)))) is None:
        raise DatasetError(f"{path} is neither the folder nor the id of a local Minari dataset.")
    return folder


NEEDED = "Minari datasets need the package minari; install it with pip install 'minari[hdf5]'."


def read(source: Source) -> Iterator[Raw]:
    """The tasks of every dataset, which its episodes' metadata name where the column map gives `task`, or one of them
    has an entry `task`; otherwise it is one task, named by its own metadata's `task` or its id."""
    for path in source.paths:
        folder = _folder(path)
        with _refusing(path):
            try:
                from minari import MinariDataset  # pyright: ignore[reportMissingImports]
            except ImportError:
                raise DatasetError(NEEDED) from None
            for file in sorted(folder.glob("*.hdf5")):
                with opened_hdf5(str(file)):
                    pass  # which refuses it if it reaches into others
            dataset = MinariDataset(folder)
            tasks = _tasks(dataset, source.columns.task)
            bounds = _bounds(dataset.action_space)
        for name, indices in tasks.items():
            with _refusing(path):
                yield _raw(dataset.iterate_episodes(indices), name, path, source.columns, bounds)


@contextmanager
def _refusing(path: str) -> Iterator[None]:
    """What goes wrong inside the package is a fault of the data, whose path every sentence begins with."""
    with readable(path, "a Minari dataset"):
        try:
            yield
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from None


def _tasks(dataset: Any, key: str | None) -> dict[str, list[int]]:
    """Which episodes are of which task, in the order in which they first appear."""
    found: dict[str, list[int]] = {}
    whole = str(dataset.storage.metadata.get("task", dataset.id))
    indices = [int(index) for index in dataset.episode_indices]
    for index, metadata in zip(indices, dataset.storage.get_episode_metadata(indices), strict=True):
        name = metadata.get(key or "task")
        if name is None and key is not None:
            raise DatasetError(f"the metadata of episode {index} have no {key}; they have {', '.join(metadata)}.")
        if isinstance(name, np.ndarray | np.generic):
            name = name.tolist()
        found.setdefault(whole if name is None else str(name), []).append(index)
    if not found:
        raise DatasetError("it has no episodes.")
    return found


def _bounds(space: Any) -> list[Bounds]:
    """Bounds of a box; raises DatasetError for other actions."""
    if not hasattr(space, "low"):
        raise DatasetError(f"its actions are {space}; discrete actions are not supported, only boxes of numbers.")
    sides = [np.asarray(side, float).reshape(-1) for side in (space.low, space.high)]
    limits = [[float(value) if abs(value) < LARGEST else None for value in side] for side in sides]
    return list(zip(*limits, strict=True))


def _raw(episodes: Iterable[Any], name: str, path: str, given: ColumnMap, bounds: list[Bounds]) -> Raw:
    """One task; an episode of T steps has T + 1 observations, so nothing has to be derived."""
    columns: dict[str, list[np.ndarray]] = {}
    for number, episode in enumerate(episodes):
        seen, action = _part(episode.observations, given.observation), _part(episode.actions, given.action)
        length = len(action)
        parts = {"observation": seen[:length], "next_observation": seen[1 : length + 1], "action": action}
        parts |= {"reward": episode.rewards, "terminated": episode.terminations, "truncated": episode.truncations}
        parts |= {"episode": np.full(length, number), "step": np.arange(length)}
        if len(seen) != length + 1:
            raise DatasetError(f"episode {episode.id} has {length} actions and {len(seen)} observations, not one more.")
        for role, part in parts.items():
            columns.setdefault(role, []).append(np.asarray(part))
    arrays = {role: np.concatenate(parts) for role, parts in columns.items()}
    names = {role: [f"{role}[{i}]" for i in range(a.shape[1])] if a.ndim == 2 else [role] for role, a in arrays.items()}
    known = {n: pair for n, pair in zip(names["action"], bounds, strict=False) if pair != (None, None)}
    return Raw(name, path, arrays, names, bounds={**known, **given.bounds})


def _part(values: Any, chosen: Any) -> np.ndarray:
    """Vectors `[n, d]` of a box, or of the chosen entries of a dictionary of boxes."""
    if isinstance(values, dict):
        wanted = (chosen,) if isinstance(chosen, str) else chosen
        if not wanted or any(key not in values for key in wanted):
            raise DatasetError(
                f"its observations or actions are a dictionary of {', '.join(values)}; say which entries to take in a "
                f"column map, such as `observation: [{', '.join(values)}]`."
            )
        return np.concatenate([_part(values[key], None) for key in wanted], 1)
    if not isinstance(values, np.ndarray):
        raise DatasetError("its observations or actions are tuples or text; only boxes of numbers are supported.")
    if values.ndim > 2:
        raise DatasetError(
            f"its observations or actions are arrays of shape {values.shape[1:]}; images are not supported."
        )
    return as_matrix(values, "observations or actions", "it")
