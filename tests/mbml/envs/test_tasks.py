"""The registry and the task values, against the recipes that generated them."""

from collections.abc import Mapping

import numpy as np
import pytest

from mbml import envs
from mbml.envs.mujoco_env import task_values
from mbml.envs.walker import NOMINAL

SECTOR = 2 * np.pi / 3
legacy = np.random.RandomState  # the authors' generator; the new one gives other numbers


def vectors(name, split):
    return np.array([task.vector for task in envs.get(name).tasks(split)])


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"'ant-dir'.*ant_dir, ant_goal, .*walker_param, or .*module:attribute"):
        envs.get("ant-dir")


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_tasks_are_in_order_and_read_only(name):
    distribution = envs.get(name)
    counts = [len(distribution.tasks(split)) for split in ("train", "test", "ood")]
    special = {"walker_param": [30, 8, 8], "umaze_goal": [10, 10, 0]}
    assert counts == special.get(name, [10, 8, 8])
    for split in ("train", "test", "ood"):
        for index, task in enumerate(distribution.tasks(split)):
            assert (task.split, task.index) == (split, index)
            named = task.parameter if isinstance(task.parameter, Mapping) else {"": task.parameter}
            for array in named.values():
                assert array.dtype == np.float64
                assert not array.flags.writeable
    labels = [task.label for task in distribution.tasks("train")]
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 14


def test_unknown_split():
    with pytest.raises(ValueError, match="choose one of train, test, ood"):
        envs.get("ant_dir").tasks("wd")


@pytest.mark.parametrize("name", ["ant_dir", "humanoid_dir"])
def test_directions_follow_the_recipe(name):
    random = legacy(1337)
    kept = task_values(name)["train_ids"]
    np.testing.assert_array_equal(vectors(name, "train")[:, 0], np.pi * random.uniform(0, 1.5, 32)[kept])
    np.testing.assert_allclose(vectors(name, "test")[:, 0], SECTOR * random.uniform(0, 1, 8), rtol=1e-15)
    np.testing.assert_allclose(vectors(name, "ood")[:, 0], np.pi * random.uniform(2 / 3, 1, 8), rtol=1e-15)


def test_ant_goals_follow_the_recipe():
    random = legacy(1337)
    for split, count, low, high in (
        ("train", 10, 0, SECTOR),
        ("test", 8, 0, SECTOR),
        ("ood", 8, SECTOR, np.pi),
    ):
        angle = low + (high - low) * random.random_sample(count)
        radius = 3 * np.sqrt(random.random_sample(count))
        expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        np.testing.assert_allclose(vectors("ant_goal", split), expected, rtol=1e-12)


def test_velocities_follow_the_recipe():
    random = legacy(1337)
    kept = task_values("half_cheetah_vel")["train_ids"]
    train, test, ood = (vectors("half_cheetah_vel", split)[:, 0] for split in ("train", "test", "ood"))
    np.testing.assert_array_equal(train, random.uniform(0, 1.5, 32)[kept])
    np.testing.assert_array_equal(test, random.uniform(0.5, 1.5, 8))
    np.testing.assert_array_equal(ood, random.uniform(1.5, 2.5, 8))


def test_maze_goals_follow_the_recipe():
    random = legacy(1336)
    for split in ("train", "test"):
        x = np.concatenate([random.uniform(0.4, 1.2, 5), random.uniform(2.4, 3.2, 5)])
        expected = np.stack([x, random.uniform(1, 2, 10)], axis=1)
        np.testing.assert_array_equal(vectors("umaze_goal", split), expected)


@pytest.mark.parametrize(("split", "seed"), [("train", 1337), ("test", 2337)])
def test_walkers_follow_the_recipe(split, seed):
    random = legacy(seed)
    for task in envs.get("walker_param").tasks(split):
        for name in NOMINAL:
            base = 1.3 if name == "dof_damping" else 1.5
            expected = NOMINAL[name] * base ** random.uniform(-2, 2, NOMINAL[name].shape)
            np.testing.assert_allclose(task.parameter[name], expected, rtol=1e-13)


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_features(name):
    distribution = envs.get(name)
    tasks = distribution.tasks("train")
    features = distribution.features(tasks)
    assert features.dtype == np.float64
    if name == "walker_param":  # 7 masses, 21 inertias, 6 dampings, 24 frictions: none is constant
        assert features.shape == (30, 58)
        assert np.abs(features).max() <= 2 * np.log(1.5)
        assert (features.std(axis=0) > 0).all()
        assert features[3, 0] == pytest.approx(np.log(tasks[3].parameter["body_mass"][1] / 3.5342917352885177))
    else:
        np.testing.assert_array_equal(features, vectors(name, "train"))


def test_walker_arrays_are_written_and_nothing_else():
    distribution = envs.get("walker_param")
    nominal = distribution.make(NOMINAL)
    first, second = (distribution.make(task.parameter) for task in distribution.tasks("train")[:2])
    for name in NOMINAL:
        for env, task in zip((first, second), distribution.tasks("train"), strict=False):
            np.testing.assert_array_equal(getattr(env.model, name), task.parameter[name])
        assert not np.array_equal(getattr(first.model, name), getattr(second.model, name))
    # mj_setConst would have changed these with the masses.
    for name in ("body_invweight0", "dof_invweight0", "body_subtreemass", "dof_M0"):
        np.testing.assert_array_equal(getattr(first.model, name), getattr(nominal.model, name))
    assert first.model.opt.timestep == 0.004


def test_walker_arrays_are_in_the_models_order():
    model = envs.get("walker_param").make(NOMINAL).model
    values = task_values("walker_param")
    assert [model.body(i).name for i in range(model.nbody)] == values["body_names"]
    assert [model.joint(i).name for i in range(model.njnt)] == values["dof_names"]
    assert [model.geom(i).name for i in range(model.ngeom)] == values["geom_names"]


def test_other_walkers_move_otherwise():
    distribution = envs.get("walker_param")
    ends = []
    for task in distribution.tasks("train")[:3]:
        env = distribution.environment(task)
        env.reset(seed=0)
        for _ in range(5):
            observation, *_ = env.step(np.full(6, 0.2))
        ends.append(observation)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in ((ends[0], ends[1]), (ends[1], ends[2])))
