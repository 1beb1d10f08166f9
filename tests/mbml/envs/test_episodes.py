"""The gymnasium side: spaces, seeds, time limit, termination, bad input."""

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest

from mbml import envs


def first_env(name, horizon=None) -> Any:
    family = envs.get(name)
    return family.environment(family.tasks("train")[0], horizon)


def trajectory(env, seed, length=30):
    env.action_space.seed(seed)
    frames = [env.reset(seed=seed)[0]]
    rewards = []
    for _ in range(length):
        observation, reward, terminated, *_ = env.step(env.action_space.sample())
        frames.append(observation)
        rewards.append(reward)
        if terminated:
            break
    return np.array(frames), rewards


SIZES = {
    "ant_dir": (27, 8, 200),
    "ant_goal": (29, 8, 200),
    "half_cheetah_vel": (20, 6, 1000),
    "humanoid_dir": (270, 17, 200),
    "umaze_goal": (4, 2, 300),
    "walker_param": (17, 6, 200),
}


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_sizes(name):
    family, env = envs.get(name), first_env(name)
    assert (family.observation_size, family.action_size, family.horizon) == SIZES[name]
    assert (*env.observation_space.shape, *env.action_space.shape, env.horizon) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "dt"),
    [
        ("ant_dir", 0.05),
        ("ant_goal", 0.05),
        ("humanoid_dir", 0.015),
        ("half_cheetah_vel", 0.05),
        ("walker_param", 0.016),
        ("umaze_goal", 0.01),
    ],
)
def test_step_duration(name, dt):
    env = first_env(name)
    env.reset(seed=0)
    before = env.data.time
    env.step(np.zeros(env.model.nu))
    assert env.data.time - before == pytest.approx(dt)
    assert env.dt == pytest.approx(dt)


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_same_seed_same_trajectory(name):
    frames, rewards = trajectory(first_env(name), seed=7)
    env = first_env(name)
    trajectory(env, seed=8)
    again, rewards_again = trajectory(env, seed=7)
    np.testing.assert_array_equal(frames, again)
    assert rewards == rewards_again
    assert not np.array_equal(frames[0], env.reset(seed=8)[0])


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_generator_state_can_be_put_back(name):
    env = first_env(name)
    env.reset(seed=1)
    state = copy.deepcopy(env.np_random.bit_generator.state)
    expected = env.reset()[0]
    assert not np.array_equal(expected, env.reset()[0])
    env.np_random.bit_generator.state = state
    np.testing.assert_array_equal(env.reset()[0], expected)


@pytest.mark.parametrize(
    ("name", "position", "velocity", "normal"),
    [
        ("ant_dir", 0.1, 0.1, True),
        ("ant_goal", 0.1, 0.1, True),
        ("humanoid_dir", 0.01, 0.01, False),
        ("half_cheetah_vel", 0.1, 0.1, True),
        ("walker_param", 0.005, 0.005, False),
        ("umaze_goal", 0.1, 0.1, True),
    ],
)
def test_reset_noise(name, position, velocity, normal):
    env = first_env(name)
    env.reset(seed=0)
    starts = []
    for _ in range(300):
        env.reset()
        starts.append((env.data.qpos - env.start, env.data.qvel.copy()))
    offsets, speeds = (np.array(values) for values in zip(*starts, strict=True))
    assert np.abs(offsets).max() <= position
    assert offsets.std(axis=0) == pytest.approx(np.full(env.model.nq, position / 3**0.5), rel=0.2)
    scale = velocity if normal else velocity / 3**0.5
    assert speeds.std(axis=0) == pytest.approx(np.full(env.model.nv, scale), rel=0.2)
    assert (np.abs(speeds).max() > velocity) == normal


@pytest.mark.parametrize("name", ["ant_goal", "half_cheetah_vel", "umaze_goal"])
def test_only_the_horizon_ends_these(name):
    env = first_env(name)
    env.reset(seed=0)
    random = np.random.default_rng(0)
    for step in range(1, env.horizon + 1):
        _, _, terminated, truncated, _ = env.step(np.sign(random.normal(size=env.model.nu)))
        assert not terminated
        assert truncated == (step == env.horizon)


def test_horizon_can_be_shortened():
    env = first_env("umaze_goal", horizon=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.reset()
    assert env.step(np.zeros(2))[3] is False


# A start from which one idle step leaves the healthy region, and the bonus that step still earns.
@pytest.mark.parametrize(
    ("name", "index", "value", "fall", "bonus"),
    [
        ("ant_dir", 2, 1.3, 0, 1.0),
        ("ant_dir", 2, 0.75, -30, 1.0),
        ("humanoid_dir", 2, 0.9, 0, 5.0),
        ("humanoid_dir", 2, 2.1, 0, 5.0),
        ("walker_param", 1, 0.7, 0, 1.0),
        ("walker_param", 1, 2.1, 0, 1.0),
        ("walker_param", 2, 1.1, 0, 1.0),
        ("walker_param", 2, -1.1, 0, 1.0),
    ],
)
def test_falling_terminates_and_still_earns_the_bonus(name, index, value, fall, bonus):
    env = first_env(name)
    position, velocity = env.start.copy(), np.zeros(env.model.nv)
    env.start_from(position, velocity)
    assert not env.step(np.zeros(env.model.nu))[2]
    position[index], velocity[2] = value, fall
    env.start_from(position, velocity)
    _, reward, terminated, truncated, info = env.step(np.zeros(env.model.nu))
    assert terminated
    assert not truncated
    if name == "walker_param":
        motion = info["achieved"][0]
    else:
        angle = envs.get(name).tasks("train")[0].vector[0]
        motion = info["achieved"] @ [np.cos(angle), np.sin(angle)] * (1.25 if name == "humanoid_dir" else 1.0)
    assert reward == pytest.approx(motion + bonus)


@pytest.mark.parametrize("name", ["humanoid_dir", "ant_goal"])
def test_control_cost_is_of_the_scaled_control(name):
    env = first_env(name)
    costs = []
    for scale in (1.0, 5.0):  # beyond 1 the action is clipped, and so is its cost
        env.start_from(env.start, np.zeros(env.model.nv))
        env.step(np.full(env.model.nu, scale))
        costs.append(env.data.ctrl.copy())
    np.testing.assert_array_equal(costs[0], costs[1])
    np.testing.assert_allclose(costs[0], 0.4 if name == "humanoid_dir" else 1.0)


def test_step_needs_a_running_episode():
    env = first_env("umaze_goal", horizon=1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))
    env.reset(seed=0)
    env.step(np.zeros(2))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))


@pytest.mark.parametrize("action", [np.zeros(3), np.zeros((1, 2)), 0.0, np.array([0.0, np.nan])])
def test_bad_action_is_refused(action):
    env = first_env("umaze_goal")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="the action must"):
        env.step(action)


def test_blown_up_physics_is_not_passed_off_as_a_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo logs the event there
    env = first_env("half_cheetah_vel")
    env.start_from(env.start, np.full(9, 1e12))
    with pytest.raises(envs.SimulationDiverged, match="diverged at step 1"):
        env.step(np.zeros(6))
    env.reset(seed=0)
    env.step(np.zeros(6))


def test_no_log_file_is_left_behind(tmp_path, monkeypatch):
    from mbml.envs.mujoco_env import compile_model

    monkeypatch.chdir(tmp_path)
    compile_model("half_cheetah.xml")
    assert list(tmp_path.iterdir()) == []


def test_observations_are_fresh_arrays():
    env = first_env("umaze_goal")
    first, _ = env.reset(seed=0)
    kept = first.copy()
    second, *_ = env.step(np.ones(2))
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)


def test_copying_is_refused():
    with pytest.raises(TypeError, match="make another one"):
        copy.deepcopy(first_env("umaze_goal"))
