"""Our environments under gymnasium's own roof: ids, its checker, and frames."""

import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mbml import envs
from mbml.envs.rendering import new_renderer

IDS = {
    "ant_dir": "mbml/AntDir-v0",
    "ant_goal": "mbml/AntGoal-v0",
    "half_cheetah_vel": "mbml/HalfCheetahVel-v0",
    "humanoid_dir": "mbml/HumanoidDir-v0",
    "umaze_goal": "mbml/UmazeGoal-v0",
    "walker_param": "mbml/WalkerParam-v0",
}


@pytest.fixture(scope="module")
def can_draw():
    """Skips, with the reason, where this machine has no OpenGL that works without a screen."""
    model = envs.get("umaze_goal").environment(envs.get("umaze_goal").tasks("train")[0]).model
    try:
        new_renderer(model).close()
    except gymnasium.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_gymnasium_accepts_it(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gymnasium.make(IDS[name]).unwrapped, skip_render_check=True)
    told = {str(warning.message) for warning in caught}
    assert all("Box observation space" in message for message in told), told  # unbounded, as in gymnasium's own


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_an_id_is_a_task_of_the_family(name):
    family = envs.get(name)
    made, own = gymnasium.make(IDS[name], task=3, split="test"), family.environment(family.tasks("test")[3])
    assert np.array_equal(made.reset(seed=4)[0], own.reset(seed=4)[0])
    action = np.full(family.action_size, 0.3, np.float32)
    for _ in range(5):
        left, right = made.step(action), own.step(action)
        assert np.array_equal(left[0], right[0])
        assert left[1:4] == right[1:4]


def test_the_horizon_can_be_shortened_and_a_task_must_exist():
    env = gymnasium.make(IDS["umaze_goal"], horizon=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(2, np.float32))[3] for _ in range(2)] == [False, True]
    for keywords, words in (({"task": 10}, "10 test tasks"), ({"split": "wd"}, "train, test, ood")):
        with pytest.raises(ValueError, match=words):
            gymnasium.make(IDS["umaze_goal"], **{"split": "test", **keywords})


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_frames(name, can_draw):
    env: Any = gymnasium.make(IDS[name], render_mode="rgb_array")
    check_env(env.unwrapped)
    env.reset(seed=0)
    first = env.render()
    assert (first.shape, first.dtype) == ((480, 480, 3), np.uint8)
    assert first.std() > 5  # something is to be seen
    for _ in range(10):
        env.step(np.ones(env.action_space.shape, np.float32))
    assert not np.array_equal(env.render(), first)
    env.close()


def test_no_mode_no_frame():
    env = gymnasium.make(IDS["umaze_goal"]).unwrapped
    env.reset(seed=0)
    assert env.render() is None


def test_a_wrong_backend_breaks_drawing_alone(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "crayons")
    program = """if True:
        import gymnasium, mbml.envs
        env = gymnasium.make("mbml/UmazeGoal-v0", render_mode="rgb_array")
        env.reset(seed=0)
        env.step(env.action_space.sample())
        try:
            env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "MUJOCO_GL=crayons" in done.stdout
    assert done.stdout.count("\n") == 1
