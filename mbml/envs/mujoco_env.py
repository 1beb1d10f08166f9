"""A lean MuJoCo environment that our six families share.

It is written on the `mujoco` bindings rather than on gymnasium's own MuJoCo classes because those differ from the
paper's in reward and bonus, and spend more time per step in Python.
"""

# pyright: reportAttributeAccessIssue=false

import json
import math
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from mbml.envs.rendering import mujoco, new_renderer
from mbml.reading import read_yaml

# MuJoCo answers an unstable state by resetting itself, clock included: a clock that starts late shows it.
EPISODE_START = 1.0
Model = Any  # mujoco.MjModel: the bindings ship no types


class SimulationDiverged(RuntimeError):
    """MuJoCo found the state unstable and reset it by itself: this step is no transition; reset and go on."""


@cache
def task_values(name: str) -> dict[str, Any]:
    """The entry of `tasks.json` for the family `name`: its three splits and how they were drawn."""
    return json.loads(Path(__file__).with_name("tasks.json").read_text(encoding="utf-8"))[name]


def paper_family(name: str) -> dict[str, Any]:
    """The parameters of the authors' tasks, by split, and the sizes of the family's presets."""
    sizes = read_yaml(Path(__file__).with_name("sizes.yaml"), ValueError)
    return {split: task_values(name)[split] for split in ("train", "test", "ood")} | {"presets": sizes[name]}


def compile_model(file_name: str) -> Model:
    """Compile an MJCF file: one that gymnasium ships, such as "ant.xml", or a path; the caller owns the result."""

    def warn(message: str) -> None:
        # Known and harmless for half_cheetah.xml; a handler also keeps MuJoCo from writing a log file.
        if "settotalmass" not in message:
            warnings.warn(message, stacklevel=2)

    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / file_name
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(warn)
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    finally:
        mujoco.set_mju_user_warning(previous)


# For families that never write to the model: one per process, whatever the number of environments.
shared_model = cache(compile_model)


def effort_of(action: np.ndarray) -> np.ndarray:
    """The sums `[n]` of `u ** 2` for recorded actions `[n, da]`, where the actuator limits are +-1."""
    return (np.clip(action.astype(np.float64), -1.0, 1.0) ** 2).sum(axis=1)


def motion(before: list[float], after: list[float], seconds: float, angle: float) -> tuple[float, tuple[float, float]]:
    """Velocity along a direction (radians from the x axis), and in x and y, in a step between two locations."""
    x, y = (after[0] - before[0]) / seconds, (after[1] - before[1]) / seconds
    return x * math.cos(angle) + y * math.sin(angle), (x, y)


class MujocoTaskEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Base of all environments: action wrapper, stepping, time limit and reset noise of the paper.

    Actions lie in [-1, 1] and are mapped onto the actuator limits, which are symmetric in every model; the
    result `u` enters the simulator and the control cost. Observations are float32. `terminated` is the task's
    own end, `truncated` the horizon. A family says what a step earns (`_reward`) and, if they are not the usual ones,
    what is observed (`_layout`), where the robot is (`_place`) and when it falls (`_fallen`).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (as gymnasium declares it)
    model_file: str  # one of gymnasium's MJCF files, or a path, unless `_build_model` does otherwise
    frame_skip = 5
    noise = 0.1  # at reset: half-width of the uniform noise on qpos, scale of that on qvel
    normal_velocity = True  # whether the noise on qvel is normal; otherwise it is uniform
    unobserved = 0  # numbers at the start of qpos that are not observed
    horizon: float = math.inf  # time limit in steps

    def __init__(self, parameter: Any) -> None:
        self.task = parameter.tolist() if isinstance(parameter, np.ndarray) else parameter
        self.model = self._build_model(parameter)
        self.data = mujoco.MjData(self.model)
        self.dt = float(self.model.opt.timestep) * self.frame_skip
        self.start = self._start()

        # Views into the simulator's memory: looking attributes up on `data` would cost much of a step's time.
        self._ctrl, self._qpos, self._qvel = self.data.ctrl, self.data.qpos, self.data.qvel
        self._control_limit = self.model.actuator_ctrlrange[:, 1].copy()
        self._parts, self._whereabouts = self._layout(), self._place()

        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.model.nu,), np.float32)
        size = sum(part.size for part in self._parts)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._steps, self._over = 0, True
        self._before: list[float] = []
        self._renderer: Any = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy would keep looking at the memory of the original.
        raise TypeError("an environment holds live simulator memory and cannot be copied; make another one")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode from the noisy initial state; `seed` restarts the environment's own generator."""
        super().reset(seed=seed)
        random, noise, number = self.np_random, self.noise, self.model.nv
        position = self.start + random.uniform(-noise, noise, self.model.nq)
        normal = self.normal_velocity
        velocity = noise * random.standard_normal(number) if normal else random.uniform(-noise, noise, number)
        return self.start_from(position, velocity), {}

    def start_from(self, position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Start an episode from qpos `position [nq]` and qvel `velocity [nv]`; returns the observation."""
        mujoco.mj_resetData(self.model, self.data)
        self._qpos[:] = position
        self._qvel[:] = velocity
        mujoco.mj_forward(self.model, self.data)
        self.data.time = EPISODE_START
        self._steps, self._over = 0, False
        self._before = self._location()
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; `info["achieved"]` is the quantity to compare with the task (velocity or position).

        Raises ResetNeeded before the first reset and after the end of an episode, ValueError for an action of
        the wrong shape or with NaN, `SimulationDiverged` when the physics blew up.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before step()")
        action = np.asarray(action)
        if action.shape != self._ctrl.shape:
            raise ValueError(f"the action must have shape {self._ctrl.shape}, not {action.shape}")
        # Paper, action wrapper: u = clip(lb + (a + 1) / 2 * (ub - lb), lb, ub) with lb = -ub.
        control = np.minimum(np.maximum(action, -1.0), 1.0) * self._control_limit
        effort = float(control.dot(control))
        if math.isnan(effort):
            raise ValueError(f"the action must be numbers in [-1, 1], not {action}")

        self._advance(control)
        self._steps += 1
        if self.data.time < EPISODE_START:
            self._over = True
            raise SimulationDiverged(f"the physics diverged at step {self._steps}")

        after = self._location()
        reward, achieved = self._reward(self._before, after, effort)
        self._before = after
        terminated = self._fallen()
        truncated = self._steps >= self.horizon
        self._over = terminated or truncated
        return self._observe(), reward, terminated, truncated, {"achieved": np.array(achieved)}

    def _advance(self, control: np.ndarray) -> None:
        self._ctrl[:] = control
        mujoco.mj_step(self.model, self.data, self.frame_skip)

    def _observe(self) -> np.ndarray:
        return np.concatenate(self._parts, dtype=np.float32, casting="same_kind")

    def render(self) -> np.ndarray | None:
        """The scene `[480, 480, 3]` uint8, or None without render_mode="rgb_array".

        Raises gymnasium.error.DependencyNotInstalled where nothing can be drawn.
        """
        if self.render_mode is None:
            return None
        self._renderer = self._renderer or new_renderer(self.model)
        self._renderer.update_scene(self.data, camera=0)
        return self._renderer.render()

    def close(self) -> None:
        """Give back what drawing took."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _build_model(self, parameter: Any) -> Model:
        return shared_model(self.model_file)

    def _start(self) -> np.ndarray:
        return self.model.qpos0.copy()

    def _layout(self) -> list[np.ndarray]:
        """The observation in order: one-dimensional views of the state."""
        return [self.data.qpos[self.unobserved :], self.data.qvel]

    def _place(self) -> np.ndarray:
        """A view of where the robot is."""
        return self.data.qpos

    def _location(self) -> list[float]:
        """Where the robot is now, as plain numbers (a view would move along)."""
        return self._whereabouts.tolist()

    def _reward(self, before: list[float], after: list[float], effort: float) -> tuple[float, tuple[float, ...]]:
        """Reward and achieved quantity of a step between two locations; `effort` is the sum of `u ** 2`."""
        raise NotImplementedError

    def _fallen(self) -> bool:
        return False
