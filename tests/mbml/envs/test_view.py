"""What pictures of behaviour show is what the simulator did, and a family that cannot show it says so."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from mbml import envs
from mbml.envs import View, family
from mbml.envs.rendering import backend
from mbml.envs.view import KINDS, Recorder


def place(env):
    """Where a robot is, from the simulator: centre of mass of the humanoid, else of its torso or first joints."""
    data, model = env.unwrapped.data, env.unwrapped.model
    if "Humanoid" in type(env.unwrapped).__name__:
        return model.body_mass @ data.xipos[:, :2] / model.body_mass.sum()
    if "Ant" in type(env.unwrapped).__name__:
        return data.body("torso").xpos[:2].copy()
    return data.qpos[:2].copy() if "Umaze" in type(env.unwrapped).__name__ else data.qpos[:1].copy()


@pytest.mark.parametrize("name", envs.FAMILIES)
def test_it_shows_where_the_robot_went_or_how_fast(name):
    chosen = envs.get(name)
    env = Recorder(chosen.environment(chosen.tasks("test")[0], 12), chosen.view)
    inner: Any = env.unwrapped
    action = np.random.default_rng(0).uniform(-1, 1, (12, chosen.action_size))
    places = []
    for seed in (0, 1):
        env.reset(seed=seed)
        begun = place(env)
        for row in action:
            before, ended = place(env), env.step(row)[2]
            after = place(env)
            moved = {"goal": after, "level": (after - before) / inner.dt}.get(chosen.view.kind, after - begun)
            places.append(moved)
            if ended:
                break
    shown = env.shown()
    assert len(shown) == 2
    np.testing.assert_allclose(np.concatenate(shown), np.array(places).reshape(-1, len(chosen.view.axes)), atol=1e-5)


def test_the_walls_are_those_of_the_model():
    chosen = envs.get("umaze_goal")
    env = chosen.environment(chosen.tasks("test")[0])
    env.reset(seed=0)
    model, shift = env.model, env.data.body("particle").xpos[:2] - env.data.qpos[:2]
    boxes = {
        (*(model.geom_pos[i, :2] - model.geom_size[i, :2] - shift).round(6), *(2 * model.geom_size[i, :2]).round(6))
        for i in range(model.ngeom)
        if model.geom_size[i, 1] == 0.5
    }
    assert boxes == {tuple(np.round(wall, 6)) for wall in chosen.view.walls}
    assert len(boxes) == 18


class Silent(gymnasium.Env):
    """Pays 1, 2, 3, ... and says what it achieved where it is told to."""

    observation_space, action_space = Box(-1, 1, (1,)), Box(-1, 1, (1,))

    def __init__(self, info=None):
        self.info, self.time = info or {}, 0

    def reset(self, **how):
        super().reset(**how)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1, np.float32), float(self.time), False, self.time == 3, self.info


def three_steps(env):
    env.reset()
    for _ in range(3):
        env.step(np.zeros(1))
    return env.shown()


def test_a_family_that_says_nothing_shows_its_rewards():
    chosen = family("f", lambda parameter: Silent(), [1, 2], [3])
    env = Recorder(chosen.environment(chosen.tasks("test")[0]), chosen.view)
    env.reset()  # begun and left: no episode
    (shown,) = three_steps(env)
    assert shown.tolist() == [[1], [2], [3]]


def test_what_is_shown_is_added_up_where_it_is_of_a_step():
    view = View("direction", ("x", "y"), per_step=0.5)
    (shown,) = three_steps(Recorder(Silent({"achieved": [2, -4]}), view))
    assert shown.tolist() == [[1, -2], [2, -4], [3, -6]]


@pytest.mark.parametrize("info", [{}, {"achieved": 1.0}, {"achieved": [1, 2, 3]}, {"achieved": None}])
def test_what_is_not_said_is_one_sentence(info):
    with pytest.raises(ValueError, match=r"every step needs 2 numbers of that name\.$"):
        three_steps(Recorder(Silent(info), View("goal", ("x", "y"))))


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (View("goal", ("x",)), "f shows a goal with 1 axes; it needs 2"),
        (View("goal", ("x", "y")), "f compares a goal with 1 numbers of a task; it needs 2"),
        (View("swirl", ("x", "y")), f"f shows 'swirl'; it must be one of {', '.join(KINDS)}"),  # pyright: ignore
    ],
)
def test_a_view_that_does_not_fit_is_refused(view, words):
    with pytest.raises(ValueError, match=words):
        family("f", lambda parameter: Silent(), [1, 2], [3], view=view)


def test_a_view_is_compared_with_the_feature():
    view = View("direction", ("x", "y"))
    assert family("f", Silent, [[1, 2]], [[3, 4]], view=view, feature=lambda p: p[:1]).view == view


def test_a_driver_that_crashes_or_hangs_takes_nothing_along(tmp_path, monkeypatch):
    """A package that stands for MuJoCo's in the processes that try."""
    (tmp_path / "mujoco.py").write_text(
        "import os, signal, sys\n"
        "name = os.environ['MUJOCO_GL']\n"
        "if name == 'egl': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "if name == 'osmesa': raise RuntimeError('no such library')\n"
        "sys.exit(0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    assert backend() == ("glfw", {"egl": "crashed with signal 11", "osmesa": "RuntimeError"})
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert backend() == (None, {"osmesa": "RuntimeError"})
