"""WalkerParam (the same reward, other bodies) of the paper."""

from collections.abc import Mapping

import numpy as np

from mbml.envs.family import family, flat
from mbml.envs.mujoco_env import Model, MujocoTaskEnv, compile_model, paper_family, task_values
from mbml.envs.view import View

# The model arrays that a task replaces, in the order they were drawn.
NOMINAL = {name: np.array(values) for name, values in task_values("walker_param")["nominal"].items()}


class WalkerParamEnv(MujocoTaskEnv):
    """Reward: forward velocity minus 0.001 |u|^2, plus 1 on every step; ends when the walker falls.

    The observation (17) is qpos without x (8) and qvel clipped to [-10, 10] (9). A step lasts 0.016 s.
    """

    frame_skip = 4
    noise = 0.005
    normal_velocity = False
    unobserved = 1

    def _build_model(self, parameter: Mapping[str, np.ndarray]) -> Model:
        # Not walker2d_v5.xml: there both feet have the friction that the authors gave to the left one.
        model = compile_model("walker2d.xml")
        model.opt.timestep = 0.004
        # No mj_setConst: the authors leave the derived constants (softness of contacts and limits) nominal.
        for name, values in parameter.items():
            getattr(model, name)[:] = values
        return model

    def _observe(self) -> np.ndarray:
        observation = super()._observe()
        velocity = observation[8:]
        np.minimum(np.maximum(velocity, -10.0, out=velocity), 10.0, out=velocity)
        return observation

    def _reward(self, before: list[float], after: list[float], effort: float) -> tuple[float, tuple[float, ...]]:
        velocity = (after[0] - before[0]) / self.dt
        return velocity + 1.0 - 0.001 * effort, (velocity,)

    def _fallen(self) -> bool:
        return not (0.8 < self._qpos[1] < 2.0 and -1.0 < self._qpos[2] < 1.0)


def log_multipliers(parameter: Mapping[str, np.ndarray]) -> np.ndarray:
    """Natural logarithm of every parameter over the nominal robot's, without those that are always zero."""
    own, nominal = flat(parameter), flat(NOMINAL)
    return np.log(own[nominal > 0] / nominal[nominal > 0])


walker_param = family(
    "walker_param",
    WalkerParamEnv,
    **paper_family("walker_param"),
    title="WalkerParam",
    about="two-legged robots in a plane with other masses, inertias, dampings and frictions",
    varies="dynamics",
    parameter="body masses (kg), body inertias (kg m^2), joint dampings (N m s/rad) and geom frictions",
    label="robot",
    feature=log_multipliers,
    reward_note="none: the reward, the same in all tasks, is the displacement in x, which is not observed",
    view=View("progress", ("distance (m)",), per_step=0.016),
)
