"""A dataset for other programs, in the scale that it was logged in: Parquet files in the column names that RLlib's
offline algorithms read, or Minari datasets."""

import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mbml.data import Dataset, to_arrow
from mbml.serialise import replacing
from mbml.transitions import DTYPES, DatasetError, TransitionBatch

# RLlib's column -> ours. It takes further columns for outputs of the acting network, so `step` stays behind.
RLLIB_COLUMNS = {
    "obs": "observation",
    "new_obs": "next_observation",
    "actions": "action",
    "rewards": "reward",
    "terminateds": "terminated",
    "truncateds": "truncated",
    "eps_id": "episode",
}
ROW_GROUP_BYTES = 8 * 1024**2  # a reader holds a few row groups at once; Ray's object store may be small


def rllib_columns(batch: TransitionBatch) -> dict[str, np.ndarray]:
    """The batch's arrays under RLlib's names, dtypes and shapes as they are."""
    return {name: getattr(batch, ours) for name, ours in RLLIB_COLUMNS.items()}


def export_parquet(batch: TransitionBatch, path: str | Path, *, shuffle_seed: int | None = None) -> None:
    """Write all transitions of one task to one Parquet file, vectors as fixed-size lists of float32.

    RLlib's reader cuts its minibatches from the file in the order of its rows, so rows in the order of collection
    make minibatches of neighbours. A `shuffle_seed` puts the rows in a random order; `eps_id` still tells the episodes.

    Raises:
        DatasetError: the batch is empty, or its shapes or dtypes are wrong.
    """
    batch.check(batch.observation.shape[-1], batch.action.shape[-1])
    if len(batch) == 0:
        raise DatasetError("The batch has no rows; an export needs at least one transition.")
    columns = rllib_columns(batch)
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(len(batch))
        columns = {name: column[order] for name, column in columns.items()}
    table = pa.table({name: to_arrow(column) for name, column in columns.items()})
    bytes_per_row = sum(column.nbytes for column in columns.values()) // len(batch)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, row_group_size=max(1, ROW_GROUP_BYTES // bytes_per_row))


def _export_parquet(dataset: Dataset, index: int, folder: Path) -> None:
    export_parquet(as_logged(dataset, index), folder / f"task-{index:03d}.parquet", shuffle_seed=index)


def _export_minari(dataset: Dataset, index: int, folder: Path) -> None:
    """Write a task as the local Minari dataset <environment>/task-<index>-v0; `folder` is the place that
    MINARI_DATASETS_PATH names. The task's label and parameter are in the metadata."""
    from mbml.logs.minari_reader import NEEDED  # readers of logs wait until they are asked for

    try:
        from minari import create_dataset_from_buffers
        from minari.data_collector.episode_buffer import EpisodeBuffer
    except ImportError:
        raise DatasetError(NEEDED) from None
    batch, meta, header = as_logged(dataset, index), dataset.meta(index), dataset.header
    name = f"{re.sub('[^A-Za-z0-9_-]', '-', header['environment'])}/task-{index:03d}-v0"
    if (folder / name).exists():
        raise DatasetError(f"{folder / name} is there already; give another folder, or take it away.")
    buffers = []
    for part in np.split(np.arange(len(batch)), np.flatnonzero(np.diff(batch.episode)) + 1):
        rows = batch.rows(part[0], part[-1] + 1)
        seen = np.concatenate([rows.observation, rows.next_observation[-1:]])
        steps: dict[str, Any] = {"observations": seen, "actions": rows.action, "rewards": list(rows.reward)}
        steps |= {"terminations": list(rows.terminated), "truncations": list(rows.truncated)}
        buffers.append(EpisodeBuffer(**steps))
    low, high = (end.astype(np.float32) for end in _limits(dataset))
    spaces: dict[str, Any] = {
        "observation_space": gymnasium.spaces.Box(-np.inf, np.inf, (header["observation_size"],), np.float32),
        "action_space": gymnasium.spaces.Box(low, high, dtype=np.float32),
    }
    with patch.dict(os.environ, MINARI_DATASETS_PATH=str(folder.absolute())), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no author and no environment's specification
        made = create_dataset_from_buffers(name, buffers, **spaces)
    made.storage.update_metadata({"task": meta["label"], "parameter": json.dumps(meta["parameter"])})


def as_logged(dataset: Dataset, index: int) -> TransitionBatch:
    """All transitions of a task in the scale that they were logged in; DatasetError for one that is not there, or whose
    files are not the ones that were written."""
    dataset.check(index)
    batch = dataset.task(index)
    if dataset.scaling is None:
        return batch
    batch = dataset.scaling.restored(batch)
    return TransitionBatch(**{name: getattr(batch, name).astype(dtype) for name, dtype in DTYPES.items()})


def _limits(dataset: Dataset) -> list[np.ndarray]:
    """Least and largest actions `[d_a]`, in the scale that they were logged in."""
    ends = [np.full(dataset.header["action_size"], end) for end in (-1.0, 1.0)]
    if dataset.scaling is None:
        return ends
    meta = dataset.scaling.meta["action"]
    return [end * np.asarray(meta["scale"]) + np.asarray(meta["offset"]) for end in ends]


FORMATS: dict[str, Callable[[Dataset, int, Path], None]] = {"parquet": _export_parquet, "minari": _export_minari}
"""Ways to write a task of a dataset into a folder."""
