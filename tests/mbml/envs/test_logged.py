"""A dataset as a family of tasks: its tasks, its content as its name, and that nothing can be played."""

import shutil

import numpy as np
import pytest

from mbml import envs
from mbml.data import Dataset, DatasetError
from mbml.envs import FamilyError
from mbml.envs.logged import LoggedFamily
from mbml.logs import ColumnMap
from mbml.logs.importing import import_logs
from tests.mbml.logs.fleet import Fleet, machine, write_npz


def fleet() -> Fleet:
    return {name: machine((5, 3, 6), seed) for seed, name in enumerate("abcde")}


def family_of(folder) -> LoggedFamily:
    found = envs.get(f"data:{folder}")
    assert isinstance(found, LoggedFamily)
    return found


def imported(tmp_path, name: str, held_out=("b",), seed: int = 0, machines: Fleet | None = None, **columns):
    (tmp_path / f"logs-{name}").mkdir()
    paths = write_npz(tmp_path / f"logs-{name}", machines or fleet())
    import_logs(paths, tmp_path / name, ColumnMap(**columns), held_out=held_out, seed=seed, log=lambda line: None)
    return tmp_path / name


def test_tasks_that_are_held_out_are_the_unseen_ones_and_stand_last(tmp_path):
    folder = imported(tmp_path, "set", ["b", "d"])
    family, dataset = family_of(folder), Dataset.open(folder)
    assert [task.label for task in family.tasks("train")] == ["a", "c", "e"]
    assert [task.label for task in family.tasks("test")] == ["b", "d"]
    assert [dataset.meta(family.place("test", i))["label"] for i in (0, 1)] == ["b", "d"]
    assert [dataset.meta(family.place("train", i))["label"] for i in (0, 1, 2)] == ["a", "c", "e"]
    assert (family.observation_size, family.action_size, family.horizon) == (3, 2, 6)
    # The rows went with the names.
    assert dataset.scaling is not None
    np.testing.assert_allclose(dataset.scaling.restored(dataset.task(3)).reward, fleet()["b"]["reward"], rtol=1e-4)


def test_a_share_is_held_out_by_the_seed(tmp_path):
    chosen = [
        tuple(task.label for task in family_of(imported(tmp_path, f"set{seed}", ["0.4"], seed)).tasks("test"))
        for seed in range(6)
    ]
    assert {len(names) for names in chosen} == {2}
    assert len(set(chosen)) > 1
    few = family_of(imported(tmp_path, "few", ["0.01"]))
    assert len(few.tasks("test")) == 1


def test_its_fingerprint_is_the_content_and_not_the_place(tmp_path):
    folder = imported(tmp_path, "set")
    shutil.copytree(folder, tmp_path / "moved")
    assert family_of(folder).fingerprint == family_of(tmp_path / "moved").fingerprint
    other = fleet()
    other["a"]["reward"][2] += 1.0
    prints = {
        family_of(folder).fingerprint,
        family_of(imported(tmp_path, "other", machines=other)).fingerprint,
        family_of(imported(tmp_path, "split", ["c"])).fingerprint,
    }
    assert len(prints) == 3


def test_it_says_of_its_parameter_that_the_log_gives_it(tmp_path):
    machines = {name: {**columns, "wall": np.full(14, 0.5)} for name, columns in fleet().items()}
    assert family_of(imported(tmp_path, "told", machines=machines, parameter="wall")).parameter == "as the log gives it"
    assert family_of(imported(tmp_path, "untold", machines=machines)).parameter == ""


def test_nothing_can_be_played_in_it_and_too_few_tasks_are_refused(tmp_path):
    family = family_of(imported(tmp_path, "set"))
    with pytest.raises(FamilyError, match="logged data without a simulator, so nothing can be played in it; use"):
        family.environment(family.tasks("train")[0])
    with pytest.raises(FamilyError, match="has 5 tasks to learn from and 0 held out"):
        family_of(imported(tmp_path, "all", []))
    with pytest.raises(DatasetError, match=r"meta\.json is missing"):
        family_of(tmp_path / "nothing")
