"""This project's own datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mbml.data import Dataset
from mbml.logs.contract import Raw, Source
from mbml.transitions import DTYPES, VECTORS


def holds(path: str) -> bool:
    """A folder with a meta.json that lies there itself."""
    return Path(path, "meta.json").is_file()


def files(paths: Sequence[str]) -> list[str]:
    """meta.json, which knows the content of every shard."""
    return [str(Path(path, "meta.json")) for path in paths]


def read(source: Source) -> Iterator[Raw]:
    """The tasks of all folders together, in the scale that they were logged in."""
    dataset = Dataset.open(*source.paths)
    labels = Counter(dataset.meta(index)["label"] for index in dataset.task_indices)
    for index in dataset.task_indices:
        dataset.check(index)
        batch, task = dataset.task(index), dataset.meta(index)
        if dataset.scaling is not None:
            batch = dataset.scaling.restored(batch)
        columns = {role: getattr(batch, role) for role in DTYPES}
        names = {role: [f"{role}[{i}]" for i in range(columns[role].shape[1])] for role in VECTORS}
        names |= {role: [role] for role in DTYPES if role not in VECTORS}
        bounds = dict.fromkeys(names["action"], (-1.0, 1.0)) if dataset.scaling is None else {}
        name = task["label"] if labels[task["label"]] == 1 else f"{task['label']} ({index})"
        yield Raw(name, source.paths[0], columns, names, task["parameter"], bounds)
