"""What RLlib reads is what the dataset holds: every column, every row, whatever the order and the row groups."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbml.data import Dataset, DatasetWriter
from mbml.export import ROW_GROUP_BYTES, export_parquet, rllib_columns
from mbml.transitions import DatasetError, TransitionBatch

PAIRS = {
    "obs": "observation",
    "new_obs": "next_observation",
    "actions": "action",
    "rewards": "reward",
    "terminateds": "terminated",
    "truncateds": "truncated",
    "eps_id": "episode",
}


def example(rows: int = 60, ds: int = 3, da: int = 2) -> TransitionBatch:
    """Episodes of seven steps; the even ones terminate, the odd ones are truncated. No two rows are alike."""
    random = np.random.default_rng(rows)
    step = np.arange(rows) % 7
    episode = np.arange(rows) // 7
    last = step == 6
    return TransitionBatch(
        observation=random.normal(size=(rows, ds)).astype(np.float32),
        action=random.uniform(-1, 1, (rows, da)).astype(np.float32),
        next_observation=random.normal(size=(rows, ds)).astype(np.float32),
        reward=random.normal(size=rows).astype(np.float32),
        terminated=last & (episode % 2 == 0),
        truncated=last & (episode % 2 == 1),
        episode=episode.astype(np.int32),
        step=step.astype(np.int32),
    )


def read(path) -> dict[str, np.ndarray]:
    """Every column of a Parquet file as numpy, lists of fixed size as a matrix."""
    table = pq.read_table(path).combine_chunks()
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            columns[name] = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def test_the_file_holds_the_dataset_column_by_column(tmp_path):
    with DatasetWriter(
        tmp_path / "dataset", environment="umaze_goal", observation_size=3, action_size=2, horizon=50, collection={}
    ) as writer:
        writer.add_task(4, example(), parameter=[0.0], label="four", shard_rows=25)
    batch = Dataset.open(tmp_path / "dataset").task(4)
    export_parquet(batch, tmp_path / "rllib" / "task.parquet")
    columns = read(tmp_path / "rllib" / "task.parquet")
    assert set(columns) == set(PAIRS)
    for name, ours in PAIRS.items():
        assert columns[name].dtype == getattr(batch, ours).dtype, name
        np.testing.assert_array_equal(columns[name], getattr(batch, ours), err_msg=name)
        np.testing.assert_array_equal(columns[name], rllib_columns(batch)[name], err_msg=name)
    assert [path.name for path in (tmp_path / "rllib").iterdir()] == ["task.parquet"]


def test_a_shuffled_file_holds_the_same_rows_in_an_order_that_the_seed_decides(tmp_path):
    batch = example()
    for name, seed in (("plain", None), ("one", 1), ("again", 1), ("two", 2)):
        export_parquet(batch, tmp_path / name, shuffle_seed=seed)
    plain, one, again, two = (read(tmp_path / name) for name in ("plain", "one", "again", "two"))
    place = {float(reward): row for row, reward in enumerate(plain["rewards"])}
    order = [place[float(reward)] for reward in one["rewards"]]
    assert sorted(order) == list(range(len(batch)))
    assert order != list(range(len(batch)))
    for name in PAIRS:
        np.testing.assert_array_equal(one[name], plain[name][order], err_msg=name)
        np.testing.assert_array_equal(one[name], again[name], err_msg=name)
    assert not np.array_equal(one["rewards"], two["rewards"])


def test_row_groups_are_small_enough_for_a_small_object_store(tmp_path):
    batch = example(rows=20_000, ds=150)
    export_parquet(batch, tmp_path / "wide")
    metadata = pq.ParquetFile(tmp_path / "wide").metadata
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    bytes_per_row = 4 * (2 * 150 + 2 + 1 + 1) + 2
    assert sum(rows) == 20_000
    assert max(rows) * bytes_per_row <= ROW_GROUP_BYTES < (max(rows) + 1) * bytes_per_row
    assert len(set(rows[:-1])) == 1


def test_a_batch_that_is_empty_or_has_a_wrong_dtype_is_refused_and_leaves_no_file(tmp_path):
    wrong = replace(example(), reward=np.zeros(60))
    for batch, words in ((example().rows(0, 0), "no rows"), (wrong, "reward is float64")):
        with pytest.raises(DatasetError, match=words):
            export_parquet(batch, tmp_path / "none")
    assert not list(tmp_path.iterdir())
