"""A dataset as a family of tasks without a simulator: the tasks to learn from, and those that were held out."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NoReturn

import numpy as np

from mbml.data import Dataset
from mbml.envs.family import Family, FamilyError, Task

SCHEME = "data:"
"""What the name of such a family begins with; the folder of its dataset follows."""
_PRESETS = {
    # What is there is used, however little a smoke run learns from it.
    "smoke": {"horizon": 0, "train_tasks": 0, "test_tasks": 0, "methods": ("evidence",), "teacher": "iql"},
    "laptop": {
        "methods": ("evidence",),
        "teacher": "iql",  # its policy only ever imitates what was logged; TD3+BC's went astray beyond it (docs/fit.md)
        "iql.foreign_share": 0.75,  # a log of weeks is small: alone its teacher learns it by heart (docs/fit.md)
        "relabel.pool": 1_000,
        "evidence.guide": "own",  # without a simulator nobody knows which teacher does best
        "evidence.foreign_share": 0.0,
        "evidence.steps": 6_000,
    },
    "paper": {"methods": ("evidence",), "relabel.pool": 1_000},
}
NO_SIMULATOR = "logged data without a simulator"


@dataclass(frozen=True)
class LoggedFamily(Family):
    """The tasks of a dataset; those of its split "test" were held out, and stand behind the others in it."""

    sizes: tuple[int, int] = (1, 1)
    """Numbers in an observation and in an action."""

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.sizes

    def environment(self, task: Task, horizon: int | None = None) -> Any:
        """Raises FamilyError: there is none."""
        _refuse()

    def place(self, split: str, index: int) -> int:
        """Where a task of a split stands in the dataset."""
        return index + (len(self.splits["train"]) if split == "test" else 0)


# What logs are before they are read: enough to say which defaults their configuration has.
_UNREAD = LoggedFamily(
    "data", "logs of your own", lambda parameter: _refuse(), presets=_PRESETS, title="logged data",
    reward_note="no reward function, for it is logged", splits={"train": (), "test": (), "ood": ()},
)  # fmt: skip


def logged_family(name: str) -> LoggedFamily:
    """The family of the dataset in the folder behind `data:`; without a folder, what all of them have in common.

    Its fingerprint is the content of the dataset, wherever the folder is. Raises DatasetError where there is none.
    """
    folder = name.removeprefix(SCHEME)
    return _of_folder(folder) if folder else _UNREAD


@cache
def _of_folder(folder: str) -> LoggedFamily:
    dataset = Dataset.open(folder)
    metas = [dataset.meta(index) for index in dataset.task_indices]
    held_out = dataset.collection.get("held_out", [])
    splits = {"train": metas[: len(metas) - len(held_out)], "test": metas[len(metas) - len(held_out) :], "ood": []}
    if len(splits["train"]) < 2 or not held_out:
        raise FamilyError(
            f"{folder} has {len(splits['train'])} tasks to learn from and {len(held_out)} held out; at least 2 and 1 "
            f"are needed."
        )
    scaling = dataset.scaling and dataset.scaling.meta
    content = json.dumps([dict(dataset.header), scaling, held_out, metas], sort_keys=True)
    return replace(
        _UNREAD,
        horizon=dataset.header["horizon"],
        parameter="as the log gives it" if any(meta["parameter"] for meta in metas) else "",
        splits={split: tuple(_task(split, i, meta) for i, meta in enumerate(part)) for split, part in splits.items()},
        fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
        sizes=(dataset.header["observation_size"], dataset.header["action_size"]),
    )


def _task(split: str, index: int, meta: Any) -> Task:
    return Task(split, index, np.array(meta["parameter"] or [], np.float64).ravel(), meta["label"])


def _refuse() -> NoReturn:
    raise FamilyError(f"This is {NO_SIMULATOR}, so nothing can be played in it; use python -m pipeline fit.")
