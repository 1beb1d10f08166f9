"""Every format gives the same transitions of the same fleet; what a file lacks is said with the file's name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mbml.logs import FORMATS, ColumnMap, LoggedTask, Source, format_of, transitions
from mbml.logs.tables import task_names
from mbml.transitions import DTYPES, DatasetError
from tests.mbml.logs.fleet import MAPS, NEEDS, WRITERS, Columns, fleet, listed, machine, write_csv_folder, write_lerobot


def read(paths: list[str], columns: dict[str, Any] | None = None, kind: str | None = None) -> list[LoggedTask]:
    entry = FORMATS[kind] if kind else format_of(paths)
    return [transitions(raw) for raw in entry.make(Source(tuple(paths), ColumnMap.of(columns or {})))]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_transitions(name, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    machines = fleet()
    tasks = read(WRITERS[name](tmp_path, machines), MAPS.get(name))
    assert [task.name for task in tasks] == list(machines)
    for task, columns in zip(tasks, machines.values(), strict=True):
        assert task.counts == (len(columns["reward"]), int(columns["episode"][-1]) + 1, 0, 0, 0)
        for role in DTYPES:
            found = getattr(task.batch, role)
            np.testing.assert_allclose(found, columns[role], rtol=1e-6, err_msg=role)
            assert found.ndim == columns[role].ndim


@pytest.fixture
def minari_home(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def make_minari(name: str, columns: list[Columns], **spaces: Any) -> Any:
    """A dataset made by the package's own tools, of the episodes of several machines."""
    import minari  # pyright: ignore[reportMissingImports]
    from minari.data_collector import EpisodeBuffer  # pyright: ignore[reportMissingImports]

    buffers = []
    for machine_columns in columns:
        for number in range(int(machine_columns["episode"][-1]) + 1):
            own = {role: column[machine_columns["episode"] == number] for role, column in machine_columns.items()}
            parts: dict[str, Any] = {
                "observations": [
                    *own["observation"].astype(np.float32),
                    own["next_observation"][-1].astype(np.float32),
                ],
                "actions": list(own["action"].astype(np.float32)),
                "rewards": own["reward"].tolist(),
                "terminations": own["terminated"].tolist(),
                "truncations": own["truncated"].tolist(),
            }
            parts |= {part: change(parts[part]) for part, (_, change) in spaces.items()}
            buffers.append(EpisodeBuffer(**parts))
    box = gymnasium.spaces.Box
    made: dict[str, Any] = {
        "observation_space": box(-np.inf, np.inf, (3,)),
        "action_space": box(np.array([0, -np.inf], np.float32), np.array([40, np.inf], np.float32)),
    }
    made |= {f"{part[:-1]}_space": space for part, (space, _) in spaces.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends metadata
        return minari.create_dataset_from_buffers(name, buffer=buffers, **made)


def test_minari_datasets_are_a_task_each_or_name_their_tasks(minari_home):
    machines = fleet()
    for name, columns in machines.items():
        make_minari(f"fleet/{name}-v0", [columns])
    whole = make_minari("fleet/all-v0", list(machines.values()))
    places = [name for name, columns in machines.items() for _ in range(int(columns["episode"][-1]) + 1)]
    whole.storage.update_episode_metadata([{"machine": place} for place in places])
    by_id = read([f"fleet/{name}-v0" for name in machines], kind="minari")
    by_folder = read([str(minari_home / f"fleet/{name}-v0") for name in machines])
    in_one = read(["fleet/all-v0"], {"task": "machine"}, "minari")
    assert [task.name for task in by_id] == [f"fleet/{name}-v0" for name in machines]
    assert [task.name for task in in_one] == list(machines)
    assert by_id[0].raw.bounds == {"action[0]": (0.0, 40.0)}
    for tasks in (by_id, by_folder, in_one):
        for task, columns in zip(tasks, machines.values(), strict=True):
            for role in DTYPES:
                np.testing.assert_allclose(getattr(task.batch, role), columns[role], rtol=1e-6, err_msg=role)


def test_minari_dictionaries_need_a_choice_and_other_spaces_are_refused(minari_home):
    spaces = gymnasium.spaces
    box, columns = spaces.Box(-np.inf, np.inf, (3,)), [machine((4,))]
    both = spaces.Dict({"seen": box, "goal": box})
    make_minari("goal/a-v0", columns, observations=(both, lambda rows: {"seen": rows, "goal": rows}))
    make_minari("choice/a-v0", columns, actions=(spaces.Discrete(2), lambda rows: [int(row[0] > 20) for row in rows]))
    picture = spaces.Box(0, 1, (2, 2), dtype=np.float32)
    make_minari(
        "image/a-v0", columns, observations=(picture, lambda rows: [np.zeros((2, 2), np.float32) for _ in rows])
    )
    [task] = read(["goal/a-v0"], {"observation": "seen"}, "minari")
    np.testing.assert_allclose(task.batch.observation, columns[0]["observation"], rtol=1e-6)
    for name, words in {
        "goal/a-v0": r"goal/a-v0: its observations or actions are a dictionary of .* `observation: \[",
        "choice/a-v0": r"choice/a-v0: its actions are Discrete\(2\); discrete actions are not supported",
        "image/a-v0": r"image/a-v0: its observations or actions are arrays of shape \(2, 2\); images are not",
        "none/a-v0": "none/a-v0 is neither the folder nor the id of a local Minari dataset",
    }.items():
        with pytest.raises(DatasetError, match=words):
            read([name], kind="minari")
    with pytest.raises(DatasetError, match="goal/a-v0: the metadata of episode 0 have no place; they have "):
        read(["goal/a-v0"], {"task": "place"}, "minari")


def test_minari_files_hold_their_data_themselves(minari_home):
    import h5py  # pyright: ignore[reportMissingImports]

    make_minari("fleet/a-v0", [machine((4,))])
    make_minari("fleet/b-v0", [machine((4,))])
    first, second = (minari_home / f"fleet/{name}-v0/data/main_data.hdf5" for name in "ab")
    with h5py.File(first, "a") as file:
        del file["episode_0"]
        file["episode_0"] = h5py.ExternalLink(str(second), "episode_0")
    with pytest.raises(DatasetError, match=r"fleet/a-v0: .*hdf5: episode_0 takes its data from another file"):
        read([str(minari_home / "fleet/a-v0")])


def test_minari_bounds_that_are_as_good_as_none(minari_home):
    largest = np.finfo(np.float32).max
    space = gymnasium.spaces.Box(-largest, largest, (2,))
    make_minari("fleet/a-v0", [machine((4,))], actions=(space, lambda rows: rows))
    [task] = read(["fleet/a-v0"], kind="minari")
    assert task.raw.bounds == {}


def test_a_column_map_names_what_no_default_finds(tmp_path):
    columns = machine((6,), ends=(True,))
    table = {
        "Zulauf [K]": columns["observation"][:, 0], "Ablauf [K]": columns["observation"][:, 1],
        "ventil 10": columns["action"][:, 1], "ventil 2": columns["action"][:, 0], "kosten": columns["reward"],
        "ende": columns["terminated"].astype(int), "u": np.full(6, 0.7),
    }  # fmt: skip
    parquet.write_table(pa.table({name: pa.array(c) for name, c in table.items()}), tmp_path / "a.parquet")
    given = {
        "observation": ["Zulauf [K]", "Ablauf [K]"], "action": "ventil *", "reward": "kosten", "terminated": "ende",
        "truncated": "ende", "parameter": "u", "bounds": {"ventil 2": [0, None]},
    }  # fmt: skip
    (tmp_path / "map.yaml").write_text(json.dumps(given))  # JSON is YAML
    source = Source((str(tmp_path / "a.parquet"),), ColumnMap.load(tmp_path / "map.yaml"))
    [raw] = FORMATS["table"].make(source)
    assert raw.names["observation"] == ["Zulauf [K]", "Ablauf [K]"]
    assert raw.names["action"] == ["ventil 2", "ventil 10"]  # in natural order
    assert raw.parameter == [0.7]
    assert raw.bounds == {"ventil 2": (0, None)}
    assert np.array_equal(raw.columns["action"], columns["action"])


def test_tables_of_machines_may_mix_their_rows_and_their_files(tmp_path):
    machines = fleet()
    generator = np.random.default_rng(0)
    rows = [(name, i) for name, columns in machines.items() for i in range(len(columns["reward"]))]
    order = generator.permutation(len(rows))
    parts = {role: np.concatenate([columns[role] for columns in machines.values()])[order] for role in machines["a"]}
    names = np.array([name for name, _ in rows])[order]
    for number, part in enumerate(np.array_split(np.arange(len(rows)), 3)):
        table = pa.table({"task": pa.array(names[part]), **listed({r: c[part] for r, c in parts.items()})})
        parquet.write_table(table, tmp_path / f"{number}.parquet")
    found = {task.name: task for task in read([str(tmp_path)])}
    assert found.keys() == machines.keys()
    for name, columns in machines.items():
        batch = found[name].batch
        assert batch.episode.max() == columns["episode"].max()
        # Episodes are numbered as they appear; each of them is whole and in order.
        expected = {tuple(row) for row in np.concatenate([columns["observation"], columns["next_observation"]], 1)}
        assert {tuple(row) for row in np.concatenate([batch.observation, batch.next_observation], 1)} == expected


def test_files_are_named_so_that_they_differ():
    assert task_names(["/a/x.csv", "/a/y.csv"]) == ["x", "y"]
    assert task_names(["/a/x/log.csv", "/a/y/log.csv"]) == ["x/log", "y/log"]
    assert task_names(["/a/x.csv", "/a/x.parquet", "/a/y.csv"]) == ["x.csv", "x.parquet", "y.csv"]
    assert task_names([str(Path.cwd() / "x.csv"), "b/x.csv"]) == ["x", "b/x"]  # one from the root, one from here


def test_lerobot_names_tasks_and_dimensions(tmp_path):
    machines = {name: columns for name, columns in fleet().items() if name != "b"}  # whose one row nothing follows
    tasks = read(write_lerobot(tmp_path, machines))
    assert [task.name for task in tasks] == ["a", "c"]
    assert tasks[0].raw.names["observation"] == ["x", "y", "z"]
    assert tasks[0].raw.names["action"] == ["left", "right"]
    assert not tasks[0].batch.terminated.any()  # next.done only says that a recording ends


def a_table(**columns: Any):
    def write(root: Path) -> list[str]:
        table = {**listed(machine((3, 2))), **columns}
        parquet.write_table(pa.table({n: c for n, c in table.items() if c is not None}), root / "log.parquet")
        return [str(root / "log.parquet")]

    return write


def text(name: str, content: str):
    def write(root: Path) -> list[str]:
        (root / name).write_text(content)
        return [str(root / name)]

    return write


def lerobot(**changes: Any):
    def write(root: Path) -> list[str]:
        paths = write_lerobot(root, fleet())
        info = json.loads((root / "meta/info.json").read_text())
        (root / "meta/info.json").write_text(json.dumps(info | changes))
        return paths

    return write


def npz(name: str = "log.npz", **columns: Any):
    def write(root: Path) -> list[str]:
        arrays = {n: c for n, c in {**machine((3, 2)), **columns}.items() if c is not None}
        np.savez(root / name, **arrays)  # pyright: ignore[reportArgumentType]
        return [str(root / name)]

    return write


def hdf5(store: Callable[[Any, Path], Any]):
    """A file in D4RL's layout, good but for its observations, which `store` puts into it, perhaps from elsewhere."""

    def write(root: Path) -> list[str]:
        import h5py  # pyright: ignore[reportMissingImports]

        columns = machine((3, 2))
        with h5py.File(root / "other.h5", "w") as other:
            other["observation"] = columns.pop("observation")
        with h5py.File(root / "log.hdf5", "w") as file:
            for name, column in columns.items():
                file[name] = column
            store(file, root)
        return [str(root / "log.hdf5")]

    return write


def raw_bytes(file: Any, root: Path) -> None:
    file.create_dataset("observation", (5, 3), "f8", external=[(str(root / "other.h5"), 0, 120)])


def virtual(file: Any, root: Path) -> None:
    import h5py  # pyright: ignore[reportMissingImports]

    layout = h5py.VirtualLayout((5, 3), "f8")
    layout[:] = h5py.VirtualSource(str(root / "other.h5"), "observation", (5, 3))
    file.create_virtual_dataset("observation", layout)


def linked(file: Any, root: Path) -> None:
    import h5py  # pyright: ignore[reportMissingImports]

    file["observation"] = h5py.ExternalLink(str(root / "other.h5"), "observation")


DATES = np.array(["2026-01-01", "NaT", "2026-01-03", "2026-01-04", "2026-01-05"], "datetime64[s]")
ELSEWHERE = r"log\.hdf5: observation takes its data from another file"
DONE = {"terminated": None, "truncated": None, "done": pa.array([False, False, True, False, True])}
REFUSED = {
    "no action": (a_table(action=None), {}, r"log\.parquet has no action: no column is named action or .* `action: n"),
    "wrong name": (
        a_table(),
        {"reward": "cost"},
        r"log\.parquet has no column cost, which the column map names as rew",
    ),
    "none": (a_table(), {"observation": ()}, r"The column map has no column for observation; say which it is, such"),
    "pattern": (a_table(), {"observation": "x_*"}, r"has no column x_\*, which the column map names as observation"),
    "twice": (a_table(), {"action": ["action", "act*"]}, "names a column twice as action: action, action"),
    "two rewards": (a_table(), {"reward": "*a*"}, "reward must be one column, not "),
    "bounds": (a_table(), {"bounds": {"valve": [0, 1]}}, "gives bounds of valve, which is no action of .*log.parquet"),
    "done": (a_table(**DONE), {}, r"log\.parquet has done, which does not say whether the process ended or only the r"),
    "text": (a_table(observation=pa.array(["a"] * 5)), {}, "column observation holds text .* it must hold numbers"),
    "times": (
        a_table(observation=pa.array(DATES)),
        {},
        r"log\.parquet: column observation holds times; it must hold n",
    ),
    "times in npz": (npz(observation=DATES), {}, r"log\.npz: column observation holds times; it must hold numbers"),
    "durations": (npz(action=DATES - DATES[0]), {}, "column action holds durations; it must hold numbers"),
    "ragged": (a_table(action=pa.array([[1.0], [1.0, 2.0], [1.0], [1.0], [1.0]])), {}, "action holds lists of differ"),
    "image": (a_table(observation=pa.array([b"png"] * 5)), {}, "column observation is of type binary; images and"),
    "nested": (a_table(observation=pa.array([[[1.0]]] * 5)), {}, "observation holds lists of lists; images are not"),
    "no task": (a_table(task=pa.array(["a", None, "a", "a", "a"])), {}, "task must name a task in every row"),
    "parameter": (a_table(), {"parameter": "reward"}, "task log: reward is a parameter, but it is not one finite numb"),
    "large parameter": (a_table(p=pa.array([1e300] * 5)), {"parameter": "p"}, r"not one finite number below 1e\+30"),
    "no parquet": (text("log.parquet", "PAR1 and no more"), {}, r"log\.parquet is not readable as parquet"),
    "no csv": (text("log.csv", ""), {}, r"log\.csv is not readable as csv"),
    "uneven csv": (text("log.csv", "obs_0,action,reward\n1,2.5,3\n1,2\n"), {}, r"log\.csv is not readable as csv"),
    "no npz": (text("log.npz", "none"), {}, r"log\.npz is not readable as \.npz"),
    "pickled": (npz(observation=np.array([{}] * 5, dtype=object)), {}, r"log\.npz is not readable as \.npz .*pickle"),
    "image in npz": (npz(observation=np.zeros((5, 4, 4, 3), np.uint8)), {}, r"shape \(5, 4, 4, 3\); images and other"),
    "discrete": (npz(action=np.array([3, 55, 7, 1, 20])), {}, "action is one whole number a row; discrete actions are"),
    "scalar": (npz(reward=np.array(1.0)), {}, r"log\.npz: reward is a single value; it needs a row for every"),
    "task in npz": (npz(task=np.array(["a"] * 5)), {}, "a file of arrays is one task; leave `task` out"),
    "old lerobot": (lerobot(codebase_version="v2.1"), {}, "is a LeRobot dataset of version v2.1; convert it to v3.0"),
    "no rewards": (lerobot(features={"action": {}, "observation.state": {}}), {}, "next.reward, which the column map"),
    "raw bytes of another file": (hdf5(raw_bytes), {}, ELSEWHERE),
    "a view of another file": (hdf5(virtual), {}, ELSEWHERE),
    "a link to another file": (hdf5(linked), {}, ELSEWHERE),
    "features": (lerobot(features=[1]), {}, "info.json is damaged"),
    "nothing": (text("log.txt", "1 2 3"), {}, "log.txt look like no format that is known .* say which with --format"),
}


@pytest.mark.parametrize(("write", "columns", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_said_in_a_sentence(write, columns, words, tmp_path):
    if words == ELSEWHERE:
        pytest.importorskip("h5py")
    with pytest.raises(DatasetError, match=words):
        read(write(tmp_path), columns)


MAPS_REFUSED = {
    "reward: [": "map.yaml is no readable YAML file",
    "- reward": "map.yaml holds no map; it should say, line by line",
    "rewards: r": r"In .*map\.yaml there is no field 'rewards'; did you mean reward\?",
    "reward: 3": r"In .*map\.yaml reward is 3; it should be string",
    "shifted: [observation]": r"In .*map\.yaml shifted \(entry 0\) is 'observation'; it should be 'action', 'reward'",
    "bounds: {a: [2, 1]}": r"the bounds of a are 2.0 to 1.0; the first must be less",
    "bounds: {a: [-.inf, .inf]}": r"In .*map\.yaml a bound of a is -inf; it must be below 1e\+30 in size, or null",
    "bounds: {a: [0, 1.7e+308]}": r"In .*map\.yaml a bound of a is 1\.7e\+308; it must be below 1e\+30",
    "bounds: {a: [.nan, null]}": "a bound of a is nan",
    "reward: a\nreward: b": r"map\.yaml .*line 2: 'reward' stands here a second time",
    "units: {3: K}": r"map\.yaml .*line 1: '3' is no text; put it in quotes",
    'reward: !!int ""': r"map\.yaml .*line 1: '' is no int",
    "reward: !!bool foo": r"map\.yaml .*line 1: 'foo' is no bool",
    'reward: !!float ""': r"map\.yaml .*line 1: '' is no float",
    "reward: !!timestamp foo": r"map\.yaml .*line 1: 'foo' is no timestamp",
    "reward: 2020-99-99": r"map\.yaml .*line 1: '2020-99-99' is no timestamp",
    "[" * 20_000: r"map\.yaml is no readable YAML file \(it is nested too deeply",
    'reward: "\\UFFFFFFFF"': r"map\.yaml is no readable YAML file",
    "reward: \x01": r"map\.yaml is no readable YAML file",
}


@pytest.mark.parametrize(("content", "words"), MAPS_REFUSED.items(), ids=[key[:30] for key in MAPS_REFUSED])
def test_what_is_wrong_with_a_map_is_said_in_a_sentence(content, words, tmp_path):
    (tmp_path / "map.yaml").write_text(content)
    with pytest.raises(DatasetError, match=words):
        ColumnMap.load(tmp_path / "map.yaml")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DatasetError, match=r"none\.csv does not exist"):
        format_of([str(tmp_path / "none.csv")])
    with pytest.raises(DatasetError, match="no readable YAML"):
        ColumnMap.load(tmp_path / "none.yaml")
    paths = write_csv_folder(tmp_path, fleet())
    with pytest.raises(DatasetError, match=r"holds no file that ends in \.npz"):
        read(paths, kind="npz")
