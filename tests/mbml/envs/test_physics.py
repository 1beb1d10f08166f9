"""The physics, observations and rewards of each environment against independent sources."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mbml import envs

# With mujoco 4.0.0, no reset noise and `wave` as actions: steps; first, second and last reward and their sum; start of
# qpos.
REFERENCE = {
    "ant_dir": (20, 0.461907, 0.348151, -0.865774, -3.917649, (-0.024959, -0.724744, 0.715329)),
    "ant_goal": (20, -2.656358, -2.671139, -3.399897, -60.715373, (-0.024959, -0.724744, 0.715329)),
    "humanoid_dir": (20, 4.968464, 4.967531, 6.638515, 114.298436, (-0.056972, 0.016002, 1.202196)),
    "half_cheetah_vel": (20, -0.704329, -0.683641, -0.451514, -15.727420, (-0.059867, -0.098649, 0.080875)),
    "walker_param": (12, 0.903120, 0.579426, -0.355705, -2.174720, (-0.226651, 1.110238, -1.123708)),
    "umaze_goal": (20, 0.172222, 0.171882, 0.157571, 3.264461, (2.080763, 3.053333)),
}


def first_env(name) -> Any:
    family = envs.get(name)
    return family.environment(family.tasks("train")[0])


def start_without_noise(env):
    return env.start_from(env.start, np.zeros(env.model.nv))


def wave(step, size):
    return 0.5 * np.sin(0.3 * step + np.arange(size))


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_reference_numbers(name):
    env = first_env(name)
    start_without_noise(env)
    rewards = []
    for step in range(20):
        _, reward, terminated, _, _ = env.step(wave(step, env.model.nu))
        rewards.append(reward)
        if terminated:
            break
    steps, first, second, last, total, position = REFERENCE[name]
    assert len(rewards) == steps
    np.testing.assert_allclose([*rewards[:2], rewards[-1], sum(rewards)], [first, second, last, total], atol=1e-5)
    np.testing.assert_allclose(env.data.qpos[: len(position)], position, atol=1e-5)


def expected_observation(name, data):
    """The observation as the spec lists it, from the simulator's state."""
    if name == "half_cheetah_vel":
        return [data.qpos[1:], data.qvel, data.body("torso").xpos]
    if name == "walker_param":
        return [data.qpos[1:], np.clip(data.qvel, -10, 10)]
    if name == "humanoid_dir":
        inertia, velocity = data.cinert[1:].ravel(), data.cvel[1:].ravel()
        return [data.qpos[2:], data.qvel, inertia, velocity, data.qfrc_actuator[6:]]
    return [data.qpos[2:] if name == "ant_dir" else data.qpos, data.qvel]


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_observation_layout(name):
    env = first_env(name)
    env.reset(seed=0)
    for step in range(10):
        observation, *_ = env.step(4 * wave(step, env.model.nu))
        assert observation.dtype == np.float32
        expected = np.concatenate(expected_observation(name, env.data)).astype(np.float32)
        np.testing.assert_array_equal(observation, expected)


def test_walker_velocities_are_clipped():
    env = first_env("walker_param")
    observation = env.start_from(env.start, np.linspace(-20, 20, 9))
    np.testing.assert_array_equal(observation[8:], np.linspace(-20, 20, 9).clip(-10, 10).astype(np.float32))


def rollout(env, task_seed, length):
    """Transitions of one episode under actions that also overstep [-1, 1]."""
    random = np.random.default_rng(task_seed)
    observations = [env.reset(seed=task_seed)[0]]
    actions = random.uniform(-1.3, 1.3, (length, env.model.nu)).astype(np.float32)
    rewards = []
    for action in actions:
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
    before, after = zip(*pairwise(observations), strict=True)
    return np.array(before), actions, np.array(after), np.array(rewards)


# Largest error allowed on the first step after a reset and on the others.
@pytest.mark.parametrize(
    ("name", "first", "rest"),
    [("umaze_goal", 1e-6, 1e-6), ("half_cheetah_vel", 0.1, 1e-4), ("ant_goal", 1e-3, 8e-3)],
)
def test_reward_function_agrees_with_stepping(name, first, rest):
    distribution = envs.get(name)
    for task in distribution.tasks("train")[:2]:
        before, actions, after, rewards = rollout(distribution.environment(task), task.index, 150)
        assert distribution.reward is not None
        recomputed = distribution.reward(before, actions, after, task.parameter)
        assert recomputed.dtype == np.float64
        error = np.abs(recomputed - rewards)
        assert error[0] < first
        assert error[1:].max() < rest
        other = distribution.reward(before, actions, after, distribution.tasks("train")[5].parameter)
        assert np.abs(other - rewards).max() > 0.05  # the task matters


@pytest.mark.parametrize("name", ["ant_dir", "humanoid_dir", "walker_param"])
def test_no_reward_function_without_position(name):
    assert envs.get(name).reward is None
    assert envs.get(name).reward_note.startswith("none: ")


def test_direction_of_the_task_turns_the_reward():
    distribution = envs.get("ant_dir")
    rewards = []
    for angle in (0.0, np.pi):
        env = distribution.make(np.array([angle]))
        start_without_noise(env)
        _, reward, _, _, info = env.step(np.full(8, 0.3))
        rewards.append(reward)
        expected = np.cos(angle) * info["achieved"][0] - 0.5 * 8 * 0.3**2 + 1
        assert reward == pytest.approx(expected)
    assert rewards[0] != rewards[1]


def test_humanoid_achieved_is_five_times_the_velocity():
    env = first_env("humanoid_dir")
    env.reset(seed=0)
    masses = env.model.body_mass
    before = masses @ env.data.xipos / masses.sum()
    _, _, _, _, info = env.step(wave(0, 17))
    velocity = (masses @ env.data.xipos / masses.sum() - before)[:2] / 0.015
    np.testing.assert_allclose(info["achieved"], 5 * velocity, rtol=1e-9)


def test_point_mass_stays_in_the_maze():
    env = first_env("umaze_goal")
    env.reset(seed=0)
    for action, rest in (
        ((1, 1), (3.1966, 3.1966)),
        ((-1, 1), (0.4034, 3.1966)),
        ((-1, -1), (0.4034, 0.4034)),
    ):
        for _ in range(90):
            observation, *_ = env.step(np.array(action, dtype=np.float32))
            assert (np.abs(observation[2:]) < 5.3).all()
        np.testing.assert_allclose(observation[:2], rest, atol=2e-3)
