"""A task's batch for other programs: one Parquet file in the column names that RLlib's offline algorithms read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mbml.data import to_arrow
from mbml.serialise import replacing
from mbml.transitions import DatasetError, TransitionBatch

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
