"""What every task distribution shares: tasks, the distribution itself, and a lean MuJoCo environment.

The environments are written on the `mujoco` bindings rather than on gymnasium's own MuJoCo classes because
those differ from the paper's in reward and bonus, and spend more time per step in Python.
"""

# pyright: reportAttributeAccessIssue=false

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

SPLITS = ("train", "test", "ood")
# MuJoCo answers an unstable state by resetting itself, clock included: a clock that starts late shows it.
EPISODE_START = 1.0
Model = Any  # mujoco.MjModel: the bindings ship no types

Reward = Callable[[np.ndarray, np.ndarray, np.ndarray, "Task"], np.ndarray]


class SimulationDiverged(RuntimeError):
    """MuJoCo found the state unstable and reset it by itself: this step is no transition; reset and go on."""


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a distribution.

    `parameter` is what sets it apart: a float64 array of one dimension, or named float64 arrays. Its meaning
    and unit are in `TaskDistribution.parameter`.
    """

    split: str
    index: int
    parameter: np.ndarray | Mapping[str, np.ndarray]
    label: str

    @property
    def vector(self) -> np.ndarray:
        """The parameter as one flat float64 array `[p]`; named arrays follow each other in their order."""
        if isinstance(self.parameter, Mapping):
            return np.concatenate([array.ravel() for array in self.parameter.values()])
        return self.parameter


@dataclass(frozen=True, eq=False)
class TaskDistribution:
    """A family of tasks that differ in the reward or in the dynamics, with the values used by the paper.

    `reward(observation [n, ds], action [n, da], next_observation [n, ds], task) -> [n]` (float64) recomputes
    the reward of logged transitions, padded or not, or is None where the observation does not determine it;
    `reward_note` says how accurate it is, or why there is none. `varies` is "reward" or "dynamics".
    """

    name: str
    paper_name: str
    horizon: int
    observation_size: int
    action_size: int
    terminates: bool
    varies: str
    parameter: str
    splits: Mapping[str, tuple[Task, ...]]
    environment: type["MujocoTaskEnv"]
    reward: Reward | None
    reward_note: str
    feature: Callable[[Task], np.ndarray] = lambda task: task.vector

    def tasks(self, split: str) -> tuple[Task, ...]:
        """The tasks of `split`: "train", "test" or "ood" (out of distribution; may be empty)."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r} of {self.name}; choose one of {', '.join(SPLITS)}")
        return self.splits[split]

    def features(self, tasks: Sequence[Task]) -> np.ndarray:
        """Numeric task parameters `[n, p]` (float64), near for tasks alike: for look-up and colouring."""
        return np.stack([self.feature(task) for task in tasks])

    def make(self, task: Task, horizon: int | None = None, pad_zeros: bool = False) -> "MujocoTaskEnv":
        """An environment fixed to `task`, truncated after `horizon` steps (default: the paper's).

        `pad_zeros` puts back the entries that are always zero in the authors' observations, in their places.
        Raises ValueError if the task does not fit this distribution or the horizon is not positive.
        """
        expected = self.tasks("train")[0].vector.shape
        if task.vector.shape != expected or not np.isfinite(task.vector).all():
            raise ValueError(
                f"a task of {self.name} needs {expected[0]} finite numbers ({self.parameter}); "
                f"task {task.label!r} has the parameter {task.parameter}"
            )
        return self.environment(task, self.horizon if horizon is None else horizon, pad_zeros)


@cache
def _task_file() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("tasks.json").read_text(encoding="utf-8"))


def task_values(name: str) -> dict[str, Any]:
    """The entry of `tasks.json` for the distribution `name`: its three splits and how they were drawn."""
    return _task_file()[name]


def load_splits(name: str, label: Callable[[np.ndarray], str]) -> dict[str, tuple[Task, ...]]:
    """The tasks of `tasks.json` for a distribution whose parameter is a number or a point."""

    def task(split: str, index: int, value: Any) -> Task:
        parameter = frozen_array(np.atleast_1d(value))
        return Task(split, index, parameter, label(parameter))

    values = task_values(name)
    return {split: tuple(task(split, i, v) for i, v in enumerate(values[split])) for split in SPLITS}


def frozen_array(values: Any) -> np.ndarray:
    """A float64 copy of `values` that nobody can write to: tasks are shared by everything in the process."""
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


def compile_model(file_name: str) -> Model:
    """Compile one of the MJCF files that gymnasium ships, such as "ant.xml"; the caller owns the result."""

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


class MujocoTaskEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Base of all environments: action wrapper, stepping, time limit and reset noise of the paper.

    Actions lie in [-1, 1] and are mapped onto the actuator limits, which are symmetric in every model; the
    result `u` enters the simulator and the control cost. Observations are float32. `terminated` is the task's
    own end, `truncated` the horizon. A family says what is observed (`_layout`), where the robot is
    (`_location`), what a step earns (`_reward`) and, if it can end, when (`_fallen`).
    """

    model_file: str  # one of gymnasium's MJCF files, unless `_build_model` does otherwise
    frame_skip: int
    position_noise: float  # half-width of the uniform noise on qpos at reset
    velocity_noise: float  # scale of the noise on qvel at reset
    velocity_noise_is_normal: bool

    def __init__(self, task: Task, horizon: int, pad_zeros: bool = False) -> None:
        if horizon < 1:
            raise ValueError(f"the horizon must be at least 1 step, not {horizon}")
        self.task = task
        self.horizon = horizon
        self.model = self._build_model(task)
        self.data = mujoco.MjData(self.model)
        self.dt = float(self.model.opt.timestep) * self.frame_skip
        self.start = self._start()

        # Views into the simulator's memory: looking attributes up on `data` would cost much of a step's time.
        self._ctrl, self._qpos, self._qvel = self.data.ctrl, self.data.qpos, self.data.qvel
        self._control_limit = self.model.actuator_ctrlrange[:, 1].copy()
        layout = (part for part in self._layout() if pad_zeros or not isinstance(part, int))
        self._parts = [np.zeros(part) if isinstance(part, int) else part for part in layout]

        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.model.nu,), np.float32)
        size = sum(part.size for part in self._parts)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._steps = 0
        self._over = True
        self._before: Any = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy would keep looking at the memory of the original.
        raise TypeError("an environment holds live simulator memory and cannot be copied; make another one")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode from the noisy initial state; `seed` restarts the environment's own generator."""
        super().reset(seed=seed)
        random = self.np_random
        position = self.start + random.uniform(-self.position_noise, self.position_noise, self.model.nq)
        if self.velocity_noise_is_normal:
            velocity = self.velocity_noise * random.standard_normal(self.model.nv)
        else:
            velocity = random.uniform(-self.velocity_noise, self.velocity_noise, self.model.nv)
        return self.start_from(position, velocity), {}

    def start_from(self, position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Start an episode from qpos `position [nq]` and qvel `velocity [nv]`; returns the observation."""
        mujoco.mj_resetData(self.model, self.data)
        self._qpos[:] = position
        self._qvel[:] = velocity
        mujoco.mj_forward(self.model, self.data)
        self.data.time = EPISODE_START
        self._steps = 0
        self._over = False
        self._before = self._location()
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; `info["achieved"]` is the quantity to compare with the task (velocity or position).

        Raises ResetNeeded before the first reset and after the end of an episode, ValueError for an action of
        the wrong shape or with NaN, `SimulationDiverged` when the physics blew up.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() before step()")
        control = self._control(action)
        effort = float(control.dot(control))
        if math.isnan(effort):
            raise ValueError(f"the action must be numbers in [-1, 1], not {action}")

        self._advance(control)
        self._steps += 1
        if self.data.time < EPISODE_START:
            self._over = True
            raise SimulationDiverged(f"the physics of task {self.task.label!r} diverged at step {self._steps}")

        after = self._location()
        reward, achieved = self._reward(self._before, after, effort)
        self._before = after
        terminated = self._fallen()
        truncated = self._steps >= self.horizon
        self._over = terminated or truncated
        return self._observe(), reward, terminated, truncated, {"achieved": np.array(achieved)}

    def _control(self, action: np.ndarray) -> np.ndarray:
        """Paper, action wrapper: `u = clip(lb + (a + 1) / 2 * (ub - lb), lb, ub)` with `lb = -ub`."""
        action = np.asarray(action)
        if action.shape != self._ctrl.shape:
            raise ValueError(f"the action must have shape {self._ctrl.shape}, not {action.shape}")
        return np.minimum(np.maximum(action, -1.0), 1.0) * self._control_limit

    def _advance(self, control: np.ndarray) -> None:
        self._ctrl[:] = control
        mujoco.mj_step(self.model, self.data, self.frame_skip)

    def _observe(self) -> np.ndarray:
        return np.concatenate(self._parts, dtype=np.float32, casting="same_kind")

    def _build_model(self, task: Task) -> Model:
        return shared_model(self.model_file)

    def _start(self) -> np.ndarray:
        return self.model.qpos0.copy()

    def _layout(self) -> list[np.ndarray | int]:
        """The observation in order: one-dimensional views of the state; a number is that many zeros."""
        raise NotImplementedError

    def _location(self) -> Any:
        """Where the robot is, as plain numbers in the form that `_reward` takes (a view would move along)."""
        raise NotImplementedError

    def _reward(self, before: Any, after: Any, effort: float) -> tuple[float, tuple[float, ...]]:
        """Reward and achieved quantity of a step between two locations; `effort` is the sum of `u ** 2`."""
        raise NotImplementedError

    def _fallen(self) -> bool:
        return False
