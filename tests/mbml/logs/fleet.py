"""A small fleet's logs, and how each format writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, feather, parquet

Columns = dict[str, np.ndarray]
Fleet = dict[str, Columns]


def machine(lengths: tuple[int, ...], seed: int = 0, ends: tuple[bool, ...] = ()) -> Columns:
    """Episodes of so many transitions, each logged with the observation that its last one led to.

    `ends` says which are terminated. Observations are large, of unequal scale, and one is constant.
    """
    generator = np.random.default_rng(seed)
    ends = ends or tuple(i % 2 == 1 for i in range(len(lengths)))
    parts: dict[str, list[np.ndarray]] = {}
    for number, (length, ended) in enumerate(zip(lengths, ends, strict=True)):
        path = generator.normal([300.0, 0.002, 7.0], [5.0, 0.001, 0.0], (length + 1, 3))
        last = np.arange(length) == length - 1
        found = {
            "observation": path[:-1],
            "action": generator.uniform(0, 40, (length, 2)),
            "next_observation": path[1:],
            "reward": generator.normal(-90, 30, length),
            "terminated": last & ended,
            "truncated": last & (not ended),
            "episode": np.full(length, number),
            "step": np.arange(length),
        }
        for name, part in found.items():
            parts.setdefault(name, []).append(part)
    return {name: np.concatenate(part) for name, part in parts.items()}


def fleet() -> Fleet:
    """Three machines, one with a single row."""
    return {"a": machine((5, 3, 4), 1), "b": machine((1,), 2, (True,)), "c": machine((40, 2), 3)}


def listed(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Columns as Arrow takes them, vectors as lists."""
    return {name: pa.array(part.tolist() if part.ndim == 2 else part) for name, part in columns.items()}


def spread(columns: Mapping[str, np.ndarray], prefixes: Mapping[str, str]) -> dict[str, Any]:
    """Columns of numbers, vectors as one column a dimension."""
    found: dict[str, Any] = {}
    for name, part in columns.items():
        if part.ndim == 2:
            found |= {f"{prefixes.get(name, name)}_{i}": pa.array(part[:, i]) for i in range(part.shape[1])}
        else:
            found[name] = pa.array(part)
    return found


def joined(machines: Fleet) -> Columns:
    """One table of all machines, with the column `task`."""
    names = [name for name, columns in machines.items() for _ in columns["reward"]]
    keys = next(iter(machines.values()))
    return {"task": np.array(names), **{key: np.concatenate([c[key] for c in machines.values()]) for key in keys}}


def write_parquet(root: Path, machines: Fleet) -> list[str]:
    parquet.write_table(pa.table(listed(joined(machines))), root / "all.parquet")
    return [str(root / "all.parquet")]


def write_csv_folder(root: Path, machines: Fleet) -> list[str]:
    short = {"observation": "obs", "next_observation": "next_obs"}
    for name, columns in machines.items():
        csv.write_csv(pa.table(spread(columns, short)), root / f"{name}.csv")
    return [str(root)]


def write_feather(root: Path, machines: Fleet) -> list[str]:
    files = []
    for name, columns in machines.items():
        files.append(str(root / f"{name}.feather"))
        feather.write_feather(pa.table(spread(columns, {})), files[-1])
    return files


def write_npz(root: Path, machines: Fleet) -> list[str]:
    for name, columns in machines.items():
        np.savez(root / f"{name}.npz", **columns)  # pyright: ignore[reportArgumentType]
    return [str(root)]


_D4RL = {
    "observation": "observations", "action": "actions", "next_observation": "next_observations", "reward": "rewards",
    "terminated": "terminals", "truncated": "timeouts",
}  # fmt: skip


def write_hdf5(root: Path, machines: Fleet) -> list[str]:
    import h5py  # pyright: ignore[reportMissingImports]

    for name, columns in machines.items():
        with h5py.File(root / f"{name}.hdf5", "w") as file:
            for role, stored in _D4RL.items():
                file[stored] = columns[role]
            file["infos/goal"] = np.zeros((len(columns["reward"]), 2))
            file["metadata/algorithm"] = "none"
    return [str(root)]


def write_lerobot(root: Path, machines: Fleet) -> list[str]:
    """As LeRobot records: a row for the last observation of every episode would not be there."""
    tables, episode, frame = [], 0, 0
    for task, columns in enumerate(machines.values()):
        number = len(columns["reward"])
        names = {"observation.state": "observation", "action": "action", "next.reward": "reward"}
        made = listed({stored: columns[role].astype(np.float32) for stored, role in names.items()})
        made |= {"next.terminated": pa.array(columns["terminated"]), "next.done": pa.array(columns["truncated"])}
        made |= {"next.state": pa.array(columns["next_observation"].astype(np.float32).tolist())}
        made |= {"episode_index": pa.array(columns["episode"] + episode), "frame_index": pa.array(columns["step"])}
        made |= {"index": pa.array(np.arange(number) + frame), "task_index": pa.array(np.full(number, task))}
        made |= {"timestamp": pa.array(columns["step"] / 30)}
        tables.append(pa.table(made))
        episode, frame = episode + int(columns["episode"][-1]) + 1, frame + number
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    for file, table in enumerate(tables):
        parquet.write_table(table, root / f"data/chunk-000/file-{file:03d}.parquet")
    tasks = {"task_index": pa.array(range(len(machines))), "__index_level_0__": pa.array(list(machines))}
    parquet.write_table(pa.table(tasks), root / "meta/tasks.parquet")
    features = {name: {"dtype": "float32", "shape": [1], "names": None} for name in tables[0].column_names}
    features["observation.state"]["names"] = ["x", "y", "z"]
    features["action"]["names"] = {"motors": ["left", "right"]}
    features["observation.images.front"] = {"dtype": "video", "shape": [4, 4, 3], "names": None}
    (root / "meta/info.json").write_text(json.dumps({"codebase_version": "v3.0", "fps": 30, "features": features}))
    return [str(root)]


WRITERS: dict[str, Callable[[Path, Fleet], list[str]]] = {
    "parquet": write_parquet, "csv": write_csv_folder, "feather": write_feather, "npz": write_npz, "hdf5": write_hdf5,
    "lerobot": write_lerobot,
}  # fmt: skip
NEEDS = {"hdf5": "h5py"}
MAPS = {"lerobot": {"terminated": "next.terminated", "next_observation": "next.state"}}
"""What a column map has to say where a format has no names for it."""
