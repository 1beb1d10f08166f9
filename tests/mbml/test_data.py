"""The dataset on disk: exact round trips, completeness, merging, and every fault that validate must find."""

import gc
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mbml.data import Dataset, DatasetError, DatasetWriter, TransitionBatch, validate
from mbml.transitions import concatenate

COLUMNS = (
    "observation",
    "action",
    "next_observation",
    "reward",
    "terminated",
    "truncated",
    "episode",
    "step",
)
HORIZON = 50
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def from_episodes(lengths, ends, values, ds, da, numbers=None) -> TransitionBatch:
    """Episodes out of a flat array of numbers, each with an end: terminated, truncated, both or none."""
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    source = iter(np.resize(values, sum(n * (ds + da + 1) + ds for n in lengths)))
    take = lambda size: np.fromiter(source, np.float32, size)  # noqa: E731
    for number, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        observation = take((length + 1) * ds).reshape(length + 1, ds)
        last = np.arange(length) == length - 1
        columns["observation"].append(observation[:-1])
        columns["next_observation"].append(observation[1:])
        columns["action"].append(take(length * da).reshape(length, da).clip(-1, 1))
        columns["reward"].append(take(length))
        columns["terminated"].append(last & (end in ("terminated", "both")))
        columns["truncated"].append(last & (end in ("truncated", "both")))
        columns["episode"].append(np.full(length, numbers[number] if numbers else number, np.int32))
        columns["step"].append(np.arange(length, dtype=np.int32))
    return TransitionBatch(**{name: np.concatenate(column) for name, column in columns.items()})


@st.composite
def batches(draw) -> TransitionBatch:
    ds, da = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, HORIZON), min_size=1, max_size=4))
    anywhere, at_the_limit = ["terminated", "truncated", "both", "none"], ["truncated", "both"]
    ends = [draw(st.sampled_from(at_the_limit if n == HORIZON else anywhere)) for n in lengths]
    numbers = draw(st.lists(st.integers(0, 2**31 - 1), min_size=len(lengths), max_size=len(lengths), unique=True))
    values = draw(hnp.arrays(np.float32, 40, elements=FINITE))
    return from_episodes(lengths, ends, values, ds, da, numbers)


def write(root: Path, tasks: dict[int, TransitionBatch], shard_rows: int = 1_000_000, **changes) -> Path:
    batch = next(iter(tasks.values()))
    settings = {
        "environment": "umaze_goal", "observation_size": batch.observation.shape[1],
        "action_size": batch.action.shape[1], "horizon": HORIZON, "collection": {"seed": 7},
    }  # fmt: skip
    with DatasetWriter(root, **(settings | changes)) as writer:
        for index, rows in tasks.items():
            writer.add_task(index, rows, parameter=[0.5, index], label=f"task {index}", shard_rows=shard_rows)
    return root


def example(seed: int = 0) -> TransitionBatch:
    """Four episodes of 50 (time limit), 7 (own end), 50 (both) and 3 (stopped) steps; ds = 3, da = 2."""
    values = np.random.default_rng(seed).normal(size=2000).astype(np.float32)
    return from_episodes((50, 7, 50, 3), ("truncated", "terminated", "both", "none"), values, 3, 2)


def assert_same(left: TransitionBatch, right: TransitionBatch) -> None:
    for name in COLUMNS:
        a, b = getattr(left, name), getattr(right, name)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


@settings(max_examples=60, deadline=None)
@given(batch=batches(), shard_rows=st.integers(1, 80))
def test_round_trip_is_exact_for_any_sharding(tmp_path_factory, batch, shard_rows):
    root = write(tmp_path_factory.mktemp("d"), {3: batch}, shard_rows)
    validate(root)
    dataset = Dataset.open(root)
    assert_same(dataset.task(3), batch)
    meta = dataset.meta(3)
    assert [shard["rows"] for shard in meta["shards"][:-1]] == [shard_rows] * ((len(batch) - 1) // shard_rows)
    assert meta["rows"] == len(batch)
    assert meta["episodes"] == len(set(batch.episode.tolist()))
    shutil.rmtree(root)


def test_what_the_files_say(tmp_path: Path):
    root = write(tmp_path / "d", {2: example(2), 0: example(0)}, shard_rows=100)
    meta = json.loads((root / "meta.json").read_text())
    assert (meta["schema_version"], meta["environment"], meta["horizon"]) == (1, "umaze_goal", HORIZON)
    assert (meta["observation_size"], meta["action_size"], meta["collection"]) == (3, 2, {"seed": 7})
    assert meta["totals"] == {"tasks": 2, "rows": 220, "episodes": 8}
    assert [task["index"] for task in meta["tasks"]] == [0, 2]
    shard = meta["tasks"][1]["shards"][1]
    assert shard["file"] == "task=002/part-0001.arrow"
    assert shard["rows"] == 10
    assert shard["sha256"] == hashlib.sha256((root / shard["file"]).read_bytes()).hexdigest()
    reader = pa.ipc.open_file(str(root / shard["file"]))
    assert reader.schema.field("next_observation").type == pa.list_(pa.float32(), 3)
    dataset = Dataset.open(root)
    assert dataset.task_indices == (0, 2)
    assert dataset.meta(2)["parameter"] == [0.5, 2]
    assert dataset.meta(2)["label"] == "task 2"
    with pytest.raises(DatasetError, match=r"no task 1; this dataset has tasks \[0, 2\]"):
        dataset.task(1)


def test_one_shard_is_a_view_that_outlives_dataset_and_file(tmp_path: Path):
    batch = example()
    root = write(tmp_path / "d", {0: batch})
    dataset = Dataset.open(root)
    before = pa.total_allocated_bytes()
    read = dataset.task(0)
    assert pa.total_allocated_bytes() - before < batch.reward.nbytes  # the flags, and no floats
    for name in ("observation", "action", "next_observation", "reward", "episode", "step"):
        assert not getattr(read, name).flags.owndata
        assert not getattr(read, name).flags.writeable
    del dataset
    shutil.rmtree(root)
    gc.collect()
    assert_same(read, batch)


def test_an_exception_leaves_no_meta_even_over_an_old_dataset(tmp_path: Path):
    root = write(tmp_path / "d", {0: example()})
    settings = {
        "environment": "e",
        "observation_size": 3,
        "action_size": 2,
        "horizon": HORIZON,
        "collection": {},
    }

    def job() -> None:
        with DatasetWriter(root, **settings) as writer:
            writer.add_task(0, example(), parameter=1, label="a", shard_rows=10)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        job()
    assert sorted(path.name for path in root.iterdir()) == ["task=000"]
    with pytest.raises(DatasetError, match=r"meta.json is missing"):
        Dataset.open(root)
    write(root, {0: example()})
    assert [path.name for path in (root / "task=000").iterdir()] == ["part-0000.arrow"]
    validate(root)


def test_the_writer_refuses_what_does_not_fit(tmp_path: Path):
    good = example()
    writer = DatasetWriter(tmp_path, environment="e", observation_size=3, action_size=2, horizon=HORIZON, collection={})
    writer.add_task(0, good, parameter=1, label="a")
    nan = good.reward.copy()
    nan[5] = np.nan
    bad = {
        "used once": (0, good, 1),
        "reward is float64": (1, replace(good, reward=good.reward.astype(np.float64)), 1),
        "terminated is list": (1, replace(good, terminated=good.terminated.tolist()), 1),
        "step is int32 \\(110, 1\\)": (1, replace(good, step=good.step[:, None]), 1),
        r"action is float32 \(109, 2\); it must be .*32 \(110, 2\)": (1, replace(good, action=good.action[1:]), 1),
        r"action is float32 \(110, 3\); it must be .*32 \(110, 2\)": (1, replace(good, action=good.observation), 1),
        r"next_observation is .*\(110, 2\); it must .*\(110, 3\)": (1, replace(good, next_observation=good.action), 1),
        "Task 1, row 5: reward is not finite": (1, replace(good, reward=nan), 1),
        "Task 1 has no rows": (1, good.rows(0, 0), 1),
        "parameter of task 1 cannot be written as JSON": (1, good, np.zeros(2)),
    }
    for words, (index, batch, parameter) in bad.items():
        with pytest.raises(DatasetError, match=words):
            writer.add_task(index, batch, parameter=parameter, label="b")
    with pytest.raises(DatasetError, match="shard_rows is 0"):
        writer.add_task(1, good, parameter=1, label="b", shard_rows=0)
    with pytest.raises(DatasetError, match="horizon is 0"):
        DatasetWriter(tmp_path, environment="e", observation_size=3, action_size=2, horizon=0, collection={})
    writer.close()
    assert Dataset.open(tmp_path).task_indices == (0,)
    validate(tmp_path)


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_is_found(tmp_path_factory, position, bit):
    root = write(tmp_path_factory.mktemp("d"), {0: example()}, shard_rows=60)
    path = root / "task=000" / "part-0001.arrow"
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"part-0001.arrow has another SHA-256"):
        validate(root)
    shutil.rmtree(root)


def edit(batch: TransitionBatch, name: str, row: int, value) -> TransitionBatch:
    column = getattr(batch, name).copy()
    column[row] = value
    return replace(batch, **{name: column})


@pytest.mark.parametrize(
    ("name", "row", "value", "words"),
    [
        ("step", 0, 1, "part-0000.arrow, row 0: step is not 0 on the first row of an episode"),
        ("step", 50, 3, "part-0000.arrow, row 50: step is not 0 on the first row of an episode"),
        ("step", 60, 7, "part-0001.arrow, row 0: step does not increase by one"),
        ("step", 70, -1, "part-0001.arrow, row 10: step is not in 0..49"),
        ("step", 106, 50, "part-0001.arrow, row 46: step is not in 0..49"),
        ("episode", slice(57, 107), 0, "part-0000.arrow, row 57: episode 0 comes back"),
        ("observation", (60, 1), 0.25, "part-0001.arrow, row 0: observation is not the next_observation"),
        (
            "next_observation",
            (20, 2),
            0.25,
            "part-0000.arrow, row 21: observation is not the next_observation",
        ),
        ("terminated", 59, True, "part-0001.arrow, row 0: the row before is terminated or truncated"),
        ("truncated", 20, True, "part-0000.arrow, row 21: the row before is terminated or truncated"),
        ("truncated", 49, False, "part-0000.arrow, row 49: truncated is not set at the time limit of 50"),
        ("truncated", 106, False, "part-0001.arrow, row 46: truncated is not set at the time limit of 50"),
    ],
)
def test_inconsistent_rows_are_found_within_and_across_shards(tmp_path: Path, name, row, value, words):
    root = write(tmp_path / "d", {0: edit(example(), name, row, value)}, shard_rows=60)
    with pytest.raises(DatasetError, match=words):
        validate(root)


def test_a_time_limit_recorded_as_terminated_is_found(tmp_path: Path):
    batch = example()
    swapped = replace(batch, terminated=batch.truncated, truncated=batch.terminated)
    with pytest.raises(DatasetError, match="row 49: truncated is not set at the time limit"):
        validate(write(tmp_path / "d", {0: swapped}))


def test_next_observation_is_free_where_an_episode_ends(tmp_path: Path):
    batch = example()
    for row in (49, 56, 106, 109):
        batch = edit(batch, "next_observation", row, 9.0)
    validate(write(tmp_path / "d", {0: batch}, shard_rows=50))


def rewrite_shard(root: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(root / "task=000" / "part-0000.arrow"), table.schema) as writer:
        writer.write_table(table)


def test_shards_that_are_not_what_meta_says(tmp_path: Path):
    root = write(tmp_path / "d", {0: example()})
    path = root / "task=000" / "part-0000.arrow"
    with pa.OSFile(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    nan = np.zeros(110, np.float32)
    nan[8] = np.inf
    reward = table.schema.get_field_index("reward")
    actions = table["action"].combine_chunks()
    twelvefold = pa.FixedSizeListArray.from_arrays(pa.array(actions.flatten().to_numpy() * np.float32(12)), 2)
    changed = {
        "wrong columns: observation": table.drop_columns(["truncated"]),
        "wrong columns": table.set_column(reward, "reward", pa.array(nan.astype(np.float64))),
        r"one record batch of 110 rows; it has batches of \[109\]": table.slice(0, 109),
        r"batches of \[55, 55\]": pa.concat_tables([table.slice(0, 55), table.slice(55)]),
        "has nulls": table.set_column(reward, "reward", pa.nulls(110, pa.float32())),
        r"row \d+: action is not in \[-1, 1\]": table.set_column(1, table.schema.field("action"), twelvefold),
        "row 8: reward is not finite": table.set_column(reward, "reward", pa.array(nan)),
    }
    for words, content in changed.items():
        rewrite_shard(root, content)
        with pytest.raises(DatasetError, match="SHA-256"):
            validate(root)
        with pytest.raises(DatasetError, match=rf"part-0000.arrow.*{words}"):
            validate(root, checksums=False)
    for damaged in (b"", b"ARROW1", path.read_bytes()[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match="not a readable Arrow IPC file"):
            Dataset.open(root).task(0)
    path.unlink()
    for reader in (Dataset.open, validate):
        with pytest.raises(DatasetError, match=r"part-0000.arrow is missing"):
            reader(root)


def test_damaged_meta_is_one_clear_error(tmp_path: Path):
    root = write(tmp_path / "d", {0: example(), 1: example(1)})
    path = root / "meta.json"
    good = path.read_text()

    def changed(**changes) -> str:
        return json.dumps(json.loads(good) | changes)

    task, other = json.loads(good)["tasks"]
    outside = task | {"shards": [task["shards"][0] | {"file": "../d/task=000/part-0000.arrow"}]}
    damaged = {
        "Invalid JSON": good[: len(good) // 2],
        "damaged: ": "[]",
        "schema_version: Input should be 1": changed(schema_version=2),
        "at horizon: ": changed(horizon="50"),
        "at tasks.0.index: Field required": changed(tasks=[{}]),
        "at tasks.0.shards.0.file: String should match pattern": changed(tasks=[outside]),
        "its shards another number": changed(tasks=[task | {"rows": 109}, other]),
        "lists a task twice": changed(tasks=[task, task]),
        "has totals": changed(tasks=[task]),
    }
    for words, content in damaged.items():
        path.write_text(content)
        for reader in (Dataset.open, validate):
            with pytest.raises(DatasetError, match=rf"meta.json.*{words}"):
                reader(root)
    path.write_text(changed(tasks=[task | {"episodes": 5}, other | {"episodes": 3}]))
    with pytest.raises(DatasetError, match="gives task 0 5 episodes; it has 4"):
        validate(root)
    for missing in (tmp_path / "nowhere", root / "task=000" / "part-0000.arrow"):
        with pytest.raises(DatasetError, match=r"meta.json"):
            Dataset.open(missing)


def test_directories_merge_when_tasks_are_disjoint(tmp_path: Path):
    parts = {index: example(index) for index in range(4)}
    first = write(tmp_path / "a", {3: parts[3], 0: parts[0]})
    second = write(tmp_path / "b", {1: parts[1]}, shard_rows=7)
    dataset = Dataset.open(first, second)
    assert dataset.task_indices == (0, 1, 3)
    for index in dataset.task_indices:
        assert_same(dataset.task(index), parts[index])
    with pytest.raises(DatasetError, match=r"Task 3 is in both .*a and .*c"):
        Dataset.open(first, second, write(tmp_path / "c", {2: parts[2], 3: parts[3]}))
    for name, value in {"environment": "ant_dir", "horizon": 60}.items():
        with pytest.raises(DatasetError, match=rf"has {name} {value}, but"):
            Dataset.open(first, write(tmp_path / name, {2: parts[2]}, **{name: value}))
    with pytest.raises(DatasetError, match="at least one"):
        Dataset.open()


def test_concatenate():
    batch = example()
    assert_same(concatenate([batch.rows(0, 50), batch.rows(50, 51), batch.rows(51, 110)]), batch)
    assert concatenate([batch]) is batch
