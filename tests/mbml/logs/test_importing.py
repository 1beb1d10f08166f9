"""From logs to a dataset folder and back, once; and nothing but sentences for whatever else the files hold."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mbml.data import Dataset, validate
from mbml.logs import ColumnMap
from mbml.logs.importing import import_logs
from mbml.transitions import DatasetError
from pipeline.command import main
from tests.mbml.logs.fleet import (
    MAPS,
    NEEDS,
    WRITERS,
    fleet,
    joined,
    listed,
    machine,
    spread,
    write_csv_folder,
    write_npz,
    write_parquet,
)
from tests.mbml.logs.test_readers import make_minari


def imported(paths: list[str], out: Path, columns: Any = None, **how: Any) -> list[str]:
    lines: list[str] = []
    import_logs(paths, out, ColumnMap.of(columns or {}), log=lines.append, **how)
    return lines


@pytest.mark.parametrize("name", WRITERS)
def test_logs_become_a_valid_dataset_that_gives_them_back(name, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    machines, out = fleet(), tmp_path / "set"
    (tmp_path / "logs").mkdir()
    lines = imported(WRITERS[name](tmp_path / "logs", machines), out, MAPS.get(name))
    assert lines[-1] == f"{out}: 3 tasks, 55 rows, 6 episodes; no row dropped."
    validate(out)
    dataset = Dataset.open(out)
    assert dataset.header == {"environment": "logged", "observation_size": 3, "action_size": 2, "horizon": 40}
    assert dataset.scaling is not None
    for index, (label, columns) in enumerate(machines.items()):
        batch = dataset.task(index)
        assert (dataset.meta(index)["label"], dataset.meta(index)["rows"]) == (label, len(columns["reward"]))
        assert np.abs(batch.action).max() <= 1
        back = dataset.scaling.restored(batch)
        for role in ("observation", "action", "next_observation", "reward"):
            size = np.ptp(columns[role], axis=0).max() + np.abs(columns[role]).max() * 1e-2
            np.testing.assert_allclose(getattr(back, role), columns[role], atol=1e-5 * size, err_msg=role)
        assert np.array_equal(batch.terminated, columns["terminated"])


def test_a_second_run_finds_it_and_other_logs_do_not_replace_it(tmp_path):
    (tmp_path / "logs").mkdir()
    paths, out = write_csv_folder(tmp_path / "logs", fleet()), tmp_path / "set"
    imported(paths, out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert imported(paths, out) == [f"{out} is there already, made of the same logs."]
    shutil.copytree(tmp_path / "logs", tmp_path / "moved")
    assert imported([str(tmp_path / "moved")], out) == [f"{out} is there already, made of the same logs."]
    with pytest.raises(DatasetError, match="is there already, made of other logs or by other rules; choose another"):
        imported(paths, out, drop_bad_rows=True)
    with (tmp_path / "logs/b.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(DatasetError, match="is there already, made of other logs or by other rules"):
        imported(paths, out)
    with pytest.raises(DatasetError, match="is there already, which is no imported dataset"):
        imported(paths, tmp_path / "logs")
    (beside,) = imported(paths, out, beside=True)[-1:]
    folder = next(tmp_path.glob("set-*"))
    assert beside.startswith(f"{folder}: 3 tasks")
    assert imported(paths, out, beside=True)[-1] == f"{folder} is there already, made of the same logs."
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_a_dataset_imported_again_is_the_same_in_its_own_scale(tmp_path):
    imported(write_parquet(tmp_path, fleet()), tmp_path / "first")
    imported([str(tmp_path / "first")], tmp_path / "second", kind="dataset")
    first, second = Dataset.open(tmp_path / "first"), Dataset.open(tmp_path / "second")
    assert first.scaling is not None
    assert second.scaling is not None
    for index in first.task_indices:
        mine, others = (d.scaling.restored(d.task(index)) for d in (first, second))  # pyright: ignore
        np.testing.assert_allclose(mine.observation, others.observation, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mine.action, others.action, rtol=1e-4, atol=1e-4)


def test_bad_rows_are_refused_or_dropped_and_counted(tmp_path, capsys):
    machines = fleet()
    machines["a"]["reward"][6] = np.nan
    machines["c"]["observation"][10] = np.inf
    for columns in machines.values():
        columns.pop("next_observation")
    paths, out = write_csv_folder(tmp_path, machines), tmp_path / "out" / "set"
    command = ["import", "--data", *paths, "--out", str(out)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: {tmp_path}/a.csv, task a, episode 1, step 1: reward is nan, no finite number; drop such rows with "
        f"--drop-bad-rows, or mend the file.\n"
    )
    assert not out.exists()
    assert main([*command, "--drop-bad-rows"]) == 0
    # Beside the two bad rows: what led to the bad observation of c, and the last row of every truncated episode.
    said = capsys.readouterr().out.splitlines()[-1]
    assert "3 tasks, 49 rows, 8 episodes; 6 rows dropped (2 with numbers that are not finite, 4 last in their" in said
    assert said.endswith("episode, for nothing says what they led to); 2 cuts where rows are missing.")
    validate(out)
    assert main(["validate", str(out)]) == 0


def test_held_out_tasks_are_written_but_have_no_part_in_the_scale(tmp_path):
    machines = fleet()
    paths = write_parquet(tmp_path, machines)
    imported(paths, tmp_path / "set", held_out=["c"])
    found = Dataset.open(tmp_path / "set")
    assert found.task_indices == (0, 1, 2)
    assert found.scaling is not None
    means = [machines[name]["observation"][:, 0].mean() for name in ("a", "b")]
    assert found.scaling.meta["observation"]["offset"][0] == pytest.approx(np.mean(means))
    with pytest.raises(
        DatasetError, match="There is no task d to hold out; give a share between 0 and 1, or names of tasks: a, b, c"
    ):
        imported(paths, tmp_path / "other", held_out=["d"])
    for held_out, left in ((list(machines), 0), (["a", "b"], 1)):
        with pytest.raises(DatasetError, match=f"tasks to learn from would be {left}, held out {3 - left}"):
            imported(paths, tmp_path / "other", held_out=held_out)
    assert not (tmp_path / "other").exists()


def test_a_share_of_two_tasks_leaves_too_few_to_learn_from(tmp_path):
    paths = write_parquet(tmp_path, {name: columns for name, columns in fleet().items() if name != "c"})
    with pytest.raises(DatasetError, match="Of 2 in all, tasks to learn from would be 1, held out 1"):
        imported(paths, tmp_path / "set", held_out=["0.2"])


def test_tasks_with_other_columns_are_refused(tmp_path):
    machines = fleet()
    machines["c"]["action"] = machines["c"]["action"][:, :1]
    words = r"c\.npz, task c has the action action, but task a has action\[0\], action\[1\]; all tasks need the same"
    with pytest.raises(DatasetError, match=words):
        imported(write_npz(tmp_path, machines), tmp_path / "out/set")
    assert not (tmp_path / "out").exists()


def test_actions_beyond_known_bounds_are_refused_with_the_file(tmp_path):
    paths = write_parquet(tmp_path, fleet())
    with pytest.raises(DatasetError, match=r"all\.parquet: action\[0\] goes from .* beyond its bounds of 0 to 1; give"):
        imported(paths, tmp_path / "set", {"bounds": {"action[0]": [0, 1]}})


def test_a_task_of_a_million_rows_beside_one_of_fifty(tmp_path):
    number = 1_000_000
    step = np.arange(number, dtype=np.int32)
    table = {"obs_0": np.sin(step / 50), "action": np.cos(step / 50), "reward": np.cos(step / 99), "step": step}
    parquet.write_table(pa.table({name: pa.array(c) for name, c in table.items()}), tmp_path / "big.parquet")
    small = pa.table({name: pa.array(c[:50]) for name, c in table.items()})
    parquet.write_table(small, tmp_path / "small.parquet")
    files = [str(tmp_path / "big.parquet"), str(tmp_path / "small.parquet")]
    lines = imported(files, tmp_path / "set")
    assert lines[-1].startswith(f"{tmp_path / 'set'}: 2 tasks, 1,000,048 rows, 2 episodes; 2 rows dropped")


def test_a_damaged_scaling_is_refused(tmp_path):
    imported(write_parquet(tmp_path, fleet()), tmp_path / "set")
    file = tmp_path / "set/meta.json"
    meta = json.loads(file.read_text())
    for change, words in (({"scale": [0.0, 1.0, 1.0]}, "greater than 0"), ({"offset": [1.0]}, "of another size")):
        broken = {**meta, "scaling": {**meta["scaling"], "observation": {**meta["scaling"]["observation"], **change}}}
        file.write_text(json.dumps(broken))
        with pytest.raises(DatasetError, match=words):
            Dataset.open(tmp_path / "set")
    file.write_text(json.dumps({name: value for name, value in meta.items() if name != "scaling"}))
    assert Dataset.open(tmp_path / "set").scaling is None


def overwrite(file: Path, **changes: np.ndarray) -> None:
    """Give a shard other columns, in a file that is as good as the one before."""
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    for name, column in changes.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(column))
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(table.combine_chunks().to_batches()[0])


def test_a_dataset_whose_shard_is_another_is_not_read(tmp_path, capsys):
    imported(write_parquet(tmp_path, fleet()), tmp_path / "set")
    file = tmp_path / "set/task=000/part-0000.arrow"
    overwrite(file, reward=np.full(12, 7, np.float32))
    assert Dataset.open(tmp_path / "set").task(0).reward.tolist() == [7] * 12  # it looks like any other
    said = f"error: {file} has another SHA-256 than meta.json says: it is changed or damaged.\n"
    for command in (
        ["validate", str(tmp_path / "set")],
        ["import", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "again")],
        ["export", str(tmp_path / "set"), str(tmp_path / "files")],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err == said
    assert {path.name for path in tmp_path.iterdir()} == {"all.parquet", "set"}


def test_files_of_one_stem_are_tasks_of_their_own(tmp_path):
    (tmp_path / "logs").mkdir()
    paths = write_csv_folder(tmp_path / "logs", fleet())
    short = {"observation": "obs", "next_observation": "next_obs"}
    parquet.write_table(pa.table(spread(machine((6,)), short)), tmp_path / "logs/a.parquet")
    imported(paths, tmp_path / "set")
    found = Dataset.open(tmp_path / "set")
    labels = [found.meta(index)["label"] for index in found.task_indices]
    assert labels == ["a.csv", "a.parquet", "b.csv", "c.csv"]


def test_two_tasks_of_one_name_are_refused_or_told_apart(tmp_path):
    roots = [tmp_path / "north", tmp_path / "south"]
    for root in roots:
        WRITERS["lerobot"](root, {"a": machine((3,))})
    with pytest.raises(DatasetError, match="south has a second task a; every task needs a name of its own"):
        imported([str(root) for root in roots], tmp_path / "set", MAPS["lerobot"])
    WRITERS["parquet"](tmp_path, {"a": machine((3,)), "b": machine((4,))})
    imported([str(tmp_path / "all.parquet")], tmp_path / "set")
    meta = json.loads((tmp_path / "set/meta.json").read_text())
    meta["tasks"][1]["label"] = "a"  # as a family may write what rounding makes alike
    (tmp_path / "set/meta.json").write_text(json.dumps(meta))
    imported([str(tmp_path / "set")], tmp_path / "again")
    found = Dataset.open(tmp_path / "again")
    assert [found.meta(index)["label"] for index in found.task_indices] == ["a (0)", "a (1)"]


def test_nothing_is_read_twice_and_no_name_is_empty(tmp_path, capsys, monkeypatch):
    (tmp_path / "logs").mkdir()
    write_csv_folder(tmp_path / "logs", fleet())
    monkeypatch.chdir(tmp_path / "logs")
    write_csv_folder(tmp_path, fleet())
    for data, words in (
        (["a.csv", "a.csv"], f"{tmp_path}/logs/a.csv would be read twice; give it once."),
        ([".", "../logs/b.csv"], f"{tmp_path}/logs/b.csv would be read twice; give it once."),
        ([" "], "Say where the logs are: files, folders or ids of datasets, none of them empty."),
        (["x" * 5000], f"{'x' * 5000} does not exist (the id of a Minari dataset needs --format minari)."),
        (["a.csv", ""], "Say where the logs are: files, folders or ids of datasets, none of them empty."),
    ):
        assert main(["import", "--data", *data, "--out", str(tmp_path / "set")]) == 2
        assert capsys.readouterr().err == f"error: {words}\n"
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["pipe", "device"])
def test_only_regular_files_are_read(name, tmp_path, capsys, impatient):
    (tmp_path / "logs").mkdir()
    write_csv_folder(tmp_path / "logs", fleet())
    special, own = tmp_path / "logs/d.csv", tmp_path / "own"
    os.mkfifo(special) if name == "pipe" else special.symlink_to("/dev/null")
    own.mkdir()
    (own / "meta.json").symlink_to(special)
    out = ["--out", str(tmp_path / "set")]
    for command, named in (
        (["import", "--data", str(tmp_path / "logs"), *out], special),
        (["import", "--data", str(special), *out], special),
        (["import", "--data", str(own), "--format", "dataset", *out], own / "meta.json"),
        (["import", "--data", str(tmp_path / "logs/a.csv"), *out, "--columns", str(special)], special),
        (["validate", str(own)], own / "meta.json"),
    ):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {named} ")
        assert "it is no regular file" in said
        assert said.count("\n") == 1


def test_progress_tells_a_rate(tmp_path, monkeypatch):
    monkeypatch.setattr("mbml.logs.importing._PATIENCE", 0.0)
    lines = imported(write_parquet(tmp_path, fleet()), tmp_path / "set")
    assert any(line.startswith("Reading: 3 tasks, 55 rows, ") and line.endswith(" rows/s") for line in lines)
    assert any(line.startswith("Writing: 3 of 3 tasks, 55 rows, ") for line in lines)


VALUES = st.one_of(
    st.floats(width=32),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.none(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.lists(st.one_of(st.floats(width=16), st.none(), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(0, 3), max_size=2),
)
NAMES = st.sampled_from([
    "task", "episode", "step", "observation", "obs_0", "obs_1", "action", "action_0", "reward", "terminated",
    "truncated", "next_observation", "done", "parameter", "", "x",
])  # fmt: skip
DTYPES = st.sampled_from(["f2", "f4", "f8", "i1", "u8", "i8", "?", "c8", "U3", "S3", "M8[s]", "m8[s]", "O", "f4,i4"])
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def spoilt_table(root: Path, data: st.DataObject) -> list[str]:
    """A good table with columns taken away, replaced by others of any kind, and rows repeated."""
    columns: dict[str, Any] = listed(joined({"a": machine((2, 1), 1), "b": machine((3,), 2)}))
    number = 6
    for name in data.draw(st.lists(NAMES, max_size=3)):
        values = data.draw(st.lists(VALUES, min_size=number, max_size=number))
        if data.draw(st.booleans()):
            columns.pop(name, None)
            continue
        try:
            columns[name] = pa.array(values[:1] * number if data.draw(st.booleans()) else values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            columns[name] = pa.array([str(value) for value in values])
    table, file = pa.table(columns), str(root / "log.arrow")
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return [file]


def spoilt_csv(root: Path, data: st.DataObject) -> list[str]:
    """Good lines among any others."""
    good = ["obs_0,obs_1,action,reward,terminated,truncated", "1.0,2.0,0.5,3,0,0", "1.5,2.5,0.25,4,0,1"]
    alphabet = st.characters(codec="utf-8", exclude_characters="\x00")
    other = st.one_of(st.text(alphabet, max_size=12), st.sampled_from(["1,2,3,4,5,6", ",,,,,", "nan,1,1,inf,0,0", '"']))
    lines = [*good, *data.draw(st.lists(other, max_size=4))]
    order = data.draw(st.permutations(lines)) if data.draw(st.booleans()) else lines
    (root / "log.csv").write_text("\n".join(order), encoding="utf-8")
    return [str(root / "log.csv")]


def spoilt_npz(root: Path, data: st.DataObject) -> list[str]:
    """Good arrays with some replaced by any kind and shape."""
    arrays: dict[str, Any] = dict(machine((2, 2), 3))
    for name in data.draw(st.lists(NAMES.filter(bool), max_size=3)):
        array = np.zeros(data.draw(SHAPES), data.draw(DTYPES))
        arrays[name] = array if data.draw(st.booleans()) else arrays.pop(name, array)
    np.savez(root / "log.npz", **arrays)
    return [str(root / "log.npz")]


JSON = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["action", "names", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def spoilt_lerobot(root: Path, data: st.DataObject) -> list[str]:
    """A good folder with another info.json, or without one of its files."""
    WRITERS["lerobot"](root / "set", {"a": machine((2, 1))})
    if data.draw(st.booleans()):
        info = json.loads((root / "set/meta/info.json").read_text())
        info[data.draw(st.sampled_from(["features", "codebase_version", "fps"]))] = data.draw(JSON)
        (root / "set/meta/info.json").write_text(json.dumps(info))
    else:
        files = sorted(f for f in (root / "set").rglob("*") if f.is_file())
        data.draw(st.sampled_from(files)).unlink()
    return [str(root / "set")]


def spoilt_own(root: Path, data: st.DataObject) -> list[str]:
    """A good dataset with another meta.json."""
    shutil.copytree(_own(), root / "set")
    meta = json.loads((root / "set/meta.json").read_text())
    part = data.draw(st.sampled_from([meta, meta["tasks"][0], meta["scaling"], meta["scaling"]["action"]]))
    key = data.draw(st.sampled_from(sorted(part)))
    part[key] = data.draw(
        st.one_of(st.none(), st.integers(-2, 9), st.text(max_size=3), st.lists(st.floats(0, 2), max_size=2))
    )
    (root / "set/meta.json").write_text(json.dumps(meta))
    return [str(root / "set")]


@functools.cache
def _own() -> Path:
    root = Path(tempfile.mkdtemp())
    imported(write_parquet(root, {"a": machine((2, 1))}), root / "set")
    return root / "set"


def spoilt_minari(root: Path, data: st.DataObject) -> list[str]:
    """A good dataset, some bytes of one of whose files are others, or which lacks one."""
    shutil.copytree(_minari(), root / "set")
    file = data.draw(st.sampled_from(sorted(f for f in (root / "set").rglob("*") if f.is_file())))
    if data.draw(st.booleans()):
        file.unlink()
    else:
        spoil(file, data)
    return [str(root / "set")]


@functools.cache
def _minari() -> Path:
    root = Path(tempfile.mkdtemp())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        make_minari("fleet/a-v0", [machine((2, 1))])
    return root / "fleet/a-v0"


def spoil(file: Path, data: st.DataObject) -> None:
    """Change some bytes of a file, and perhaps cut it."""
    content = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)


def spoilt_bytes(kind: str):
    """A good file of a format, some of whose bytes are others, or which is cut."""

    def write(root: Path, data: st.DataObject) -> list[str]:
        [path] = WRITERS[kind](root, {"a": machine((2, 1))})
        file = Path(path) if Path(path).is_file() else next(f for f in sorted(Path(path).iterdir()) if f.is_file())
        spoil(file, data)
        return [path]

    return write


SPOILT = {
    "table": (spoilt_table, 200),
    "csv": (spoilt_csv, 200),
    "npz": (spoilt_npz, 200),
    "lerobot": (spoilt_lerobot, 100),
    "dataset": (spoilt_own, 100),
    "bytes of minari": (spoilt_minari, 60),
    "bytes of parquet": (spoilt_bytes("parquet"), 80),
    "bytes of npz": (spoilt_bytes("npz"), 80),
    "bytes of hdf5": (spoilt_bytes("hdf5"), 60),
    "bytes of feather": (spoilt_bytes("feather"), 60),
}


@pytest.mark.parametrize("name", SPOILT)
def test_whatever_a_file_holds_it_is_a_dataset_or_a_sentence(name, tmp_path_factory):
    for kind, package in {**NEEDS, "minari": "minari"}.items():
        if kind in name:
            pytest.importorskip(package)
    write, number = SPOILT[name]
    root = tmp_path_factory.mktemp("spoilt")

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=st.data())
    def try_one(data: st.DataObject) -> None:
        shutil.rmtree(root)
        root.mkdir()
        paths, out = write(root, data), root / "out"
        before = set(root.iterdir())
        try:
            import_logs(paths, out, drop_bad_rows=data.draw(st.booleans()), log=lambda line: None)
        except DatasetError as error:
            sentence = str(error)
            assert "\n" not in sentence
            assert str(root) in sentence, sentence
            assert set(root.iterdir()) == before
            return
        validate(out)

    try_one()
