"""WalkerParam (the same reward, other bodies) of the paper."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mbml.envs.family import family
from mbml.envs.mujoco_env import Model, MujocoTaskEnv, compile_model, paper_tasks, task_values
from mbml.envs.sizes import LOCOMOTION

# The model arrays that a task replaces, in the order they were drawn.
ARRAYS = ("body_mass", "body_inertia", "dof_damping", "geom_friction")


class WalkerParamEnv(MujocoTaskEnv):
    """Reward: forward velocity minus 0.001 |u|^2, plus 1 on every step; ends when the walker falls.

    The observation (17) is qpos without x (8) and qvel clipped to [-10, 10] (9). A step lasts 0.016 s.
    """

    frame_skip = 4
    noise = 0.005
    normal_velocity = False

    def _build_model(self, parameter: Mapping[str, np.ndarray]) -> Model:
        # Not walker2d_v5.xml: there both feet have the friction that the authors gave to the left one.
        model = compile_model("walker2d.xml")
        model.opt.timestep = 0.004
        # No mj_setConst: the authors leave the derived constants (softness of contacts and limits) nominal.
        for name in ARRAYS:
            getattr(model, name)[:] = parameter[name]
        return model

    def _layout(self) -> list[np.ndarray]:
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


NOMINAL = {name: np.array(task_values("walker_param")["nominal"][name]) for name in ARRAYS}


def log_multipliers(parameter: Mapping[str, np.ndarray]) -> np.ndarray:
    """Natural logarithm of every parameter over the nominal robot's, without those that are always zero."""
    ratios = [parameter[name][NOMINAL[name] > 0] / NOMINAL[name][NOMINAL[name] > 0] for name in ARRAYS]
    return np.log(np.concatenate(ratios))


def _robots() -> dict[str, Any]:
    """The arrays of every robot in the order they were drawn."""
    tasks = paper_tasks("walker_param").items()
    return {split: [{name: robot[name] for name in ARRAYS} for robot in robots] for split, robots in tasks}


walker_param = family(
    "walker_param",
    WalkerParamEnv,
    **_robots(),
    title="WalkerParam",
    about="two-legged robots in a plane with other masses, inertias, dampings and frictions",
    varies="dynamics",
    parameter="body masses (kg), body inertias (kg m^2), joint dampings (N m s/rad) and geom frictions",
    label="robot",
    feature=log_multipliers,
    reward_note="none: the reward, the same in all tasks, is the displacement in x, which is not observed",
    presets={
        "laptop": LOCOMOTION | {"train_tasks": 10, "collect.steps": 50_000, "relabel.pool": 10_000},
        "paper": {
            "collect.steps": 300_000,
            "teach.iterations": 100_000,
            # All relabelled next observations of 30 x 300K transitions would take 18 GB; a pool is an unbiased sample.
            "relabel.pool": 20_000,
            "batch_pearl.context_size": 100,
        },
    },
)
