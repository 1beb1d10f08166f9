"""The family of a thousand goals, and its logs as a dataset."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.point_mass import COLUMNS, STEPS, Options, goals, reward, write_logs
from mbml import envs
from mbml.data import Dataset, validate
from mbml.logs import ColumnMap
from mbml.logs.importing import import_logs

NAME = "examples.point_mass:point_mass"


def test_the_reward_is_that_of_stepping_and_the_goal_can_be_reached():
    family = envs.get(NAME)
    assert len(family.tasks("train")) == 1_000
    assert (family.observation_size, family.action_size, family.horizon) == (2, 2, STEPS)
    task = family.tasks("train")[3]
    env = family.environment(task)
    place, _ = env.reset(seed=1)
    assert family.reward is not None
    for _ in range(STEPS):
        action = np.clip((task.vector - place) / 0.15, -1, 1).astype(np.float32)
        after, earned, terminated, truncated, info = env.step(action)
        found = family.reward(place[None], action[None], after[None], task.parameter)
        np.testing.assert_allclose(found, earned)
        assert info["achieved"] == after.tolist()
        place = after
    assert truncated
    assert not terminated
    assert earned > -0.01


@pytest.mark.parametrize("number", [10, 100, 1_000])
def test_the_first_goals_fill_the_disc_evenly(number):
    found = goals(number)
    radius = np.linalg.norm(found, axis=1)
    assert radius.max() <= 1
    assert abs((radius < np.sqrt(0.5)).mean() - 0.5) < 0.11
    assert np.abs(found.mean(0)).max() < 0.15
    assert np.array_equal(goals(5, first=2), goals(7)[2:])


def test_logs_become_a_dataset_of_as_many_tasks(tmp_path):
    write_logs(Options(tmp_path / "points.parquet", tasks=7, rows=50))
    assert (tmp_path / "columns.yaml").read_text() == COLUMNS
    assert pq.read_table(tmp_path / "points.parquet").num_rows == 350
    columns = ColumnMap.load(tmp_path / "columns.yaml")
    import_logs([str(tmp_path / "points.parquet")], tmp_path / "set", columns, held_out=["0.2"], log=lambda said: None)
    validate(tmp_path / "set")
    dataset = Dataset.open(tmp_path / "set")
    assert [dataset.meta(task)["rows"] for task in dataset.task_indices] == [50] * 7
    assert dataset.scaling is not None
    batch, meta = dataset.task(0), dataset.meta(0)
    units = [
        np.asarray(dataset.scaling.meta[part][name])
        for part in ("observation", "reward")
        for name in ("scale", "offset")
    ]
    after, earned = batch.next_observation * units[0] + units[1], batch.reward * units[2] + units[3]
    goal = goals(7)[int(meta["label"].split()[1])]
    np.testing.assert_allclose(earned, reward(after, batch.action, after, goal), atol=1e-5)
