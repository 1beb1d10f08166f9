"""What RLlib reads is what the dataset holds: every column, every row, whatever the order and the row groups."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mbml.data import Dataset, DatasetWriter
from mbml.export import FORMATS, ROW_GROUP_BYTES, export_parquet, rllib_columns
from mbml.logs.importing import import_logs
from mbml.scaling import Statistics
from mbml.transitions import DTYPES, DatasetError, TransitionBatch

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


@pytest.mark.parametrize("scale", [False, True])
def test_minari_reads_what_was_logged_and_a_second_import_finds_the_same_rows(tmp_path, scale):
    minari = pytest.importorskip("minari")
    batch = path_of(example())
    logged = write(tmp_path / "dataset", batch, scale)
    FORMATS["minari"](Dataset.open(tmp_path / "dataset"), 4, tmp_path / "out")
    dataset = minari.MinariDataset(tmp_path / "out" / "umaze_goal" / "task-004-v0" / "data")
    assert dataset.storage.metadata["task"] == "four"
    assert json.loads(dataset.storage.metadata["parameter"]) == [0.5]
    found = list(dataset.iterate_episodes())
    assert len(found) == 9
    assert dataset.total_steps == len(batch)
    np.testing.assert_array_equal(np.concatenate([e.actions for e in found]), logged.action)
    np.testing.assert_array_equal(np.concatenate([e.rewards for e in found]), logged.reward)
    np.testing.assert_array_equal(np.concatenate([e.observations[:-1] for e in found]), logged.observation)
    np.testing.assert_array_equal(np.concatenate([e.observations[1:] for e in found]), logged.next_observation)
    np.testing.assert_array_equal(np.concatenate([e.terminations for e in found]), batch.terminated)
    np.testing.assert_array_equal(np.concatenate([e.truncations for e in found]), batch.truncated)
    assert found[0].actions.max() <= dataset.action_space.high.max()

    import_logs([str(tmp_path / "out" / "umaze_goal" / "task-004-v0")], tmp_path / "again", None, log=lambda line: None)
    again = Dataset.open(tmp_path / "again")
    assert [again.meta(i)["label"] for i in again.task_indices] == ["four"]
    assert again.scaling is not None
    np.testing.assert_allclose(again.scaling.restored(again.task(0)).reward, logged.reward, rtol=1e-5, atol=1e-6)
    with pytest.raises(DatasetError, match="task-004-v0 is there already"):
        FORMATS["minari"](Dataset.open(tmp_path / "dataset"), 4, tmp_path / "out")


def test_parquet_has_the_scale_of_the_log(tmp_path):
    logged = write(tmp_path / "dataset", path_of(example()), True)
    FORMATS["parquet"](Dataset.open(tmp_path / "dataset"), 4, tmp_path)
    columns = read(tmp_path / "task-004.parquet")
    assert sorted(columns["rewards"]) == sorted(logged.reward)
    assert sorted(columns["actions"][:, 1]) == sorted(logged.action[:, 1])


def path_of(batch: TransitionBatch) -> TransitionBatch:
    """The same with every observation where the step before has led."""
    inside = np.flatnonzero(batch.step[1:] > 0)
    observation = batch.observation.copy()
    observation[inside + 1] = batch.next_observation[inside]
    return replace(batch, observation=observation)


def write(folder, batch: TransitionBatch, scale: bool) -> TransitionBatch:
    """A dataset of one task; what an export should find, in the scale of its log."""
    sizes = {"environment": "umaze_goal", "observation_size": 3, "action_size": 2, "horizon": 7, "collection": {}}
    with DatasetWriter(folder, **sizes) as writer:
        writer.add_task(4, batch, parameter=[0.5], label="four")
        if scale:
            names = {"observation": ["a", "b", "c"], "action": ["u", "v"]}
            statistics = Statistics(names, {"u": (-10.0, 10.0), "v": (0.0, 40.0)})
            wide = replace(batch, action=batch.action * np.array([10.0, 20.0]) + np.array([0.0, 20.0]))
            statistics.add(wide)
            writer.scaling = statistics.scaling()
    if not scale:
        return batch
    assert writer.scaling is not None
    restored = writer.scaling.restored(batch)
    return TransitionBatch(**{name: getattr(restored, name).astype(dtype) for name, dtype in DTYPES.items()})
