"""Logs as the batches that everything learns from, without the episodes that nothing learns from."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.stage import Run, stage
from mbml.data import Dataset, DatasetWriter, validate
from mbml.envs.logged import SCHEME


@dataclass(frozen=True)
class Adopt:
    """The dataset of a logged family."""

    env: str
    held_episodes: float
    """Share of every training task's episodes, its last ones, to judge by."""


@stage(version=1)
def adopt(spec: Adopt, run: Run) -> dict[str, Any]:
    """Leaves `dataset/`, tasks to learn from and tasks held out, and `held/`, the last episodes of the former."""
    folder = spec.env.removeprefix(SCHEME)
    validate(folder)
    dataset = Dataset.open(folder)
    about = {**dataset.header, "collection": dict(dataset.collection)}
    training = len(dataset.task_indices) - len(dataset.collection["held_out"])
    with DatasetWriter(run.out / "dataset", **about) as kept, DatasetWriter(run.out / "held", **about) as held:
        kept.scaling = held.scaling = dataset.scaling
        for done, index in enumerate(dataset.task_indices):
            batch, meta = dataset.task(index), dataset.meta(index)
            starts = np.flatnonzero(batch.step == 0)
            number = round(spec.held_episodes * len(starts)) if done < training else 0
            end = int(starts[-number]) if 0 < number < len(starts) else len(batch)
            named = {"parameter": meta["parameter"], "label": meta["label"]}
            kept.add_task(index, batch.rows(0, end), **named)
            if end < len(batch):
                held.add_task(index, batch.rows(end, len(batch)), **named)
            run.report(done + 1, len(dataset.task_indices), "tasks")
    return {}
