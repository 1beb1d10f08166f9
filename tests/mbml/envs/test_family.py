"""Families from outside the package: any gymnasium environment becomes what learners take, or is refused in words."""

import os
import sys
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from mbml import envs
from mbml.envs import family
from mbml.envs.family import FamilyError


class Plain(gymnasium.Env):
    """Counts steps and remembers the last action; ends by itself after `length`."""

    def __init__(self, observation_space, action_space, length=10**6):
        self.observation_space, self.action_space, self.length = observation_space, action_space, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {}

    def step(self, action):
        self.action, self.steps = action, self.steps + 1
        return self._seen(), 1.0, self.steps >= self.length, False, {}

    def _seen(self):
        assert self.observation_space.shape is not None
        return np.full(self.observation_space.shape, self.steps, self.observation_space.dtype)


SEEN, ACTED = Box(-np.inf, np.inf, (3,), np.float64), Box(np.array([0, -4], np.float32), np.array([1, 4], np.float32))


def never_made(parameter) -> Any:
    raise AssertionError


def plain(observation_space=SEEN, action_space=ACTED, length=10**6, **keywords):
    return family(
        "plain", lambda parameter: Plain(observation_space, action_space, length), [1, 2], [3], horizon=5, **keywords
    )


def first(chosen, horizon=None):
    return chosen.environment(chosen.tasks("train")[0], horizon)


def test_observations_become_flat_float32_and_actions_reach_their_bounds():
    chosen = plain(Box(-1, 1, (2, 3), np.float64))
    env = first(chosen)
    assert (chosen.observation_size, chosen.action_size) == (6, 2)
    assert env.action_space == Box(-1, 1, (2,), np.float32)
    seen, _ = env.reset(seed=0)
    assert (seen.shape, seen.dtype) == ((6,), np.float32)
    for action, inner in (((-1, -1), (0, -4)), ((1, 1), (1, 4)), ((0, 0.5), (0.5, 2))):
        seen, *_ = env.step(np.array(action, np.float32))
        np.testing.assert_allclose(env.unwrapped.action, inner)
    assert (seen.shape, seen.dtype) == ((6,), np.float32)


def test_an_environment_that_fits_is_left_alone():
    env = first(plain(Box(-1, 1, (3,), np.float32), Box(-1, 1, (2,), np.float32)))
    env.reset(seed=0)
    action = np.array([0.25, -0.75], np.float32)
    env.step(action)
    assert env.unwrapped.action is action


@pytest.mark.parametrize(("length", "horizon", "last"), [(100, None, 5), (100, 2, 2), (3, None, 3)])
def test_the_horizon_truncates_and_the_environment_terminates(length, horizon, last):
    env = first(plain(length=length), horizon)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(last)]
    assert ends == [(False, False)] * (last - 1) + [(length == last, length != last)]


@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ((SEEN, Discrete(3)), "bounded Box"),
        ((SEEN, Box(-1, np.inf, (2,))), "bounded Box"),
        ((SEEN, Box(0, 3, (2,), np.int32)), "bounded Box"),
        ((SEEN, Box(-1, 1, (2, 2))), "bounded Box of floats in a row"),
        ((SEEN, Box(1, 1, (1,))), "every low end must be below its high end"),
        ((SEEN, Box(np.array([-1, 0], np.float32), np.array([1, 0], np.float32))), "every low end must be below"),
        ((Dict({"position": SEEN}), ACTED), "Box of numbers"),
        ((Discrete(3), ACTED), "Box of numbers"),
        ((Box(0, 255, (8, 8, 3), np.uint8), ACTED), "no image"),
    ],
)
def test_other_spaces_are_refused(spaces, words):
    with pytest.raises(ValueError, match=words):
        _ = plain(*spaces).observation_size


class Failing(Plain):
    """Does something at its seventh step, or at its reset."""

    def __init__(self, what):
        super().__init__(SEEN, ACTED)
        self.what = what

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.what == "reset":
            raise RuntimeError("no power")
        return np.zeros(3), {}

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.steps == 7:
            if isinstance(self.what, Exception):
                raise self.what
            reward = self.what if self.what != "observation" else reward
            observation = np.array([0, np.inf, 0]) if self.what == "observation" else observation
        return observation, reward, *rest


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (float("nan"), "step 7 of an episode has the reward nan; it must be one finite number."),
        (np.float64("-inf"), "step 7 of an episode has the reward .*inf.*; it must be one finite number."),
        (None, "step 7 of an episode has the reward None; it must be one finite number."),
        ("observation", r"step 7 of an episode has inf as number 1 \(from 0\) of its observation; all must be finite."),
        (RuntimeError("bad\n motor"), r"step 7 .* fails with RuntimeError: bad motor \(test_family.py, line \d+\)."),
        (KeyError(), r"step 7 of an episode fails with KeyError \(test_family.py, line \d+\)."),
        ("reset", r"a reset fails with RuntimeError: no power \(test_family.py, line \d+\)."),
    ],
)
def test_a_fault_of_an_environment_is_a_sentence_with_family_task_and_step(what, words):
    chosen = family("robot", lambda parameter: Failing(what), [1, 2], [3], horizon=10)
    env = chosen.environment(chosen.tasks("train")[1])

    def episode():
        env.reset(seed=0)
        for _ in range(8):
            env.step(np.zeros(2, np.float32))

    with pytest.raises(FamilyError, match=f"^train task 1 of robot: {words}$"):
        episode()


def test_physics_that_diverge_go_by_another_name():
    chosen = family("robot", lambda parameter: Failing(envs.SimulationDiverged("too fast")), [1, 2], [3], horizon=10)
    env = first(chosen)
    env.reset(seed=0)
    for _ in range(6):
        env.step(np.zeros(2, np.float32))
    with pytest.raises(envs.SimulationDiverged):
        env.step(np.zeros(2, np.float32))


def test_tasks_carry_what_was_given():
    chosen = family("f", never_made, [0.5, 2], [[1.0]], [3], parameter="mass in kg")
    assert [task.label for task in chosen.tasks("train")] == ["0.5", "2"]
    assert [(t.split, t.index, t.vector.tolist()) for t in chosen.tasks("test")] == [("test", 0, [1.0])]
    assert chosen.features(chosen.tasks("train")).tolist() == [[0.5], [2.0]]
    with pytest.raises(ValueError, match="read-only"):
        chosen.tasks("ood")[0].parameter[0] = 1
    named = family("f", never_made, [{"a": 1, "b": [2, 3]}] * 2, [{"a": 4, "b": [5, 6]}], label="robot")
    assert named.tasks("test")[0].vector.tolist() == [4, 5, 6]
    assert [task.label for task in named.tasks("train")] == ["robot 0", "robot 1"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": []}, "0 training and 1 test tasks"),
        ({"test": []}, "2 training and 0 test tasks"),
        ({"train": [1, [2, 3]]}, "train task 1 .* 1 finite numbers"),
        ({"test": [np.nan]}, "test task 0 .* 1 finite numbers"),
        ({"varies": "colour"}, "reward or dynamics"),
        ({"presets": {"huge": {}}}, "huge; there are smoke, laptop, paper"),
    ],
)
def test_a_family_that_does_not_fit_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        family("f", never_made, **({"train": [1, 2], "test": [3]} | changes))


def test_the_horizon_must_be_positive():
    with pytest.raises(ValueError, match="horizon is 0"):
        first(plain(), horizon=0)


def test_make_must_give_an_environment():
    chosen = family("f", lambda parameter: cast(Any, None), [1, 2], [3])
    with pytest.raises(ValueError, match="returned NoneType"):
        first(chosen)


SOURCE = """
import gymnasium
from mbml.envs import family
swing = family("swing", lambda gravity: gymnasium.make("Pendulum-v1", g=float(gravity[0])), [9, 10], [11])
number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the current directory, under a name that no other test uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    yield name
    sys.modules.pop(name, None)


def test_a_family_of_the_current_directory(own_module):
    chosen = envs.get(f"{own_module}:swing")
    assert (chosen.name, chosen.observation_size, chosen.action_size) == ("swing", 3, 1)
    assert envs.get(f"{own_module}:swing") is chosen
    assert chosen.fingerprint
    assert all(own.fingerprint == "" for own in envs.FAMILIES.values())
    env = first(chosen)
    env.reset(seed=0)
    assert env.step(np.ones(1, np.float32))[0].dtype == np.float32


def test_the_fingerprint_follows_the_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    prints = []
    for number, text in enumerate((SOURCE, SOURCE, SOURCE + "# changed")):
        (tmp_path / f"fingerprinted_{number}.py").write_text(text)
        prints.append(envs.get(f"fingerprinted_{number}:swing").fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.at_all:swing", "no module 'nowhere.at_all'"),
        (":swing", "names no module"),
        ("{}:absent", "has no 'absent'"),
        ("{}:number", "has a int for 'number'"),
    ],
)
def test_what_cannot_be_found_is_said_in_a_sentence(name, words, own_module):
    with pytest.raises(ValueError, match=words) as caught:
        envs.get(name.format(own_module))
    assert "\n" not in str(caught.value)


def test_a_module_that_misses_another_names_it(own_module, tmp_path):
    (tmp_path / f"{own_module}.py").write_text("import not_installed_anywhere")
    with pytest.raises(FamilyError, match="not_installed_anywhere"):
        envs.get(f"{own_module}:swing")
