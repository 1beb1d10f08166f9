"""WalkerParam (the same reward, other bodies); paper, section 5 of the environments."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mbml.envs.base import (
    SPLITS,
    Model,
    MujocoTaskEnv,
    Task,
    TaskDistribution,
    compile_model,
    frozen_array,
    task_values,
)

# The model arrays that a task replaces, in the order they were drawn.
ARRAYS = ("body_mass", "body_inertia", "dof_damping", "geom_friction")


class WalkerParamEnv(MujocoTaskEnv):
    """Reward: forward velocity minus 0.001 |u|^2, plus 1 on every step; ends when the walker falls.

    The observation (17) is qpos without x (8) and qvel clipped to [-10, 10] (9). A step lasts 0.016 s.
    """

    frame_skip = 4
    position_noise = 0.005
    velocity_noise = 0.005
    velocity_noise_is_normal = False

    def _build_model(self, task: Task) -> Model:
        if not isinstance(task.parameter, Mapping) or set(task.parameter) != set(ARRAYS):
            raise ValueError(f"a task of walker_param needs the arrays {', '.join(ARRAYS)}")
        # Not walker2d_v5.xml: there both feet have the friction that the authors gave to the left one.
        model = compile_model("walker2d.xml")
        model.opt.timestep = 0.004
        # No mj_setConst: the authors leave the derived constants (softness of contacts and limits) nominal.
        for name in ARRAYS:
            getattr(model, name)[:] = task.parameter[name]
        return model

    def _layout(self) -> list[np.ndarray | int]:
        return [self.data.qpos[1:], self.data.qvel]

    def _observe(self) -> np.ndarray:
        observation = super()._observe()
        velocity = observation[8:]
        np.minimum(np.maximum(velocity, -10.0, out=velocity), 10.0, out=velocity)
        return observation

    def _location(self) -> float:
        return float(self._qpos[0])

    def _reward(self, before: float, after: float, effort: float) -> tuple[float, tuple[float, ...]]:
        velocity = (after - before) / self.dt
        return velocity + 1.0 - 0.001 * effort, (velocity,)

    def _fallen(self) -> bool:
        return not (0.8 < self._qpos[1] < 2.0 and -1.0 < self._qpos[2] < 1.0)


def _arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: frozen_array(values[name]) for name in ARRAYS}


NOMINAL = _arrays(task_values("walker_param")["nominal"])


def log_multipliers(task: Task) -> np.ndarray:
    """Natural logarithm of every parameter over the nominal robot's, without those that are always zero."""
    assert isinstance(task.parameter, Mapping)
    ratios = [task.parameter[name][NOMINAL[name] > 0] / NOMINAL[name][NOMINAL[name] > 0] for name in ARRAYS]
    return np.log(np.concatenate(ratios))


walker_param = TaskDistribution(
    name="walker_param",
    paper_name="WalkerParam",
    horizon=200,
    observation_size=17,
    action_size=6,
    terminates=True,
    varies="dynamics",
    parameter="body masses (kg), body inertias (kg m^2), joint dampings (N m s/rad) and geom frictions",
    splits={
        split: tuple(
            Task(split, index, _arrays(values), f"robot {index}")
            for index, values in enumerate(task_values("walker_param")[split])
        )
        for split in SPLITS
    },
    environment=WalkerParamEnv,
    reward=None,
    reward_note="none: the reward, the same in all tasks, is the displacement in x, which is not observed",
    feature=log_multipliers,
)
