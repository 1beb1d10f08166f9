"""HalfCheetahVel (run at a given speed) of the paper."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbml.envs.family import family
from mbml.envs.mujoco_env import MujocoTaskEnv, effort_of, paper_family
from mbml.envs.view import View

TIMESTEP = 0.01  # s, of the simulator
DT = 0.05  # s, of a step


class HalfCheetahVelEnv(MujocoTaskEnv):
    """Reward: minus the distance between forward and target velocity, minus 0.05 |u|^2; never ends.

    The observation (20) is qpos without x (8), qvel (9) and the position of the torso (3), with absolute x.
    """

    model_file = "half_cheetah.xml"
    unobserved = 1

    def _layout(self) -> list[np.ndarray]:
        return [*super()._layout(), self.data.body("torso").xpos]

    def _reward(self, before: list[float], after: list[float], effort: float) -> tuple[float, tuple[float, ...]]:
        velocity = (after[0] - before[0]) / self.dt
        return earned_at(velocity, self.task[0], effort), (velocity,)


def earned_at(velocity: Any, target: float, effort: Any) -> Any:
    """HalfCheetahVel's reward at a `velocity` in m/s, a number or an array `[n]`."""
    return -abs(velocity - target) - 0.05 * effort


def velocity_reward(observation: NDArray, action: NDArray, next_observation: NDArray, target: NDArray) -> NDArray:
    """HalfCheetahVel's reward `[n]` from observations `[n, 20]` and actions `[n, 6]`, whose limits are +-1.

    The observed torso position is one simulator step older than qpos; the velocity brings x up to date.
    """
    seen = np.stack([observation, next_observation]).astype(np.float64)
    before, after = seen[..., 17] + TIMESTEP * seen[..., 8]
    return earned_at((after - before) / DT, target[0], effort_of(action))


half_cheetah_vel = family(
    "half_cheetah_vel",
    HalfCheetahVelEnv,
    **paper_family("half_cheetah_vel"),
    title="HalfCheetahVel",
    about="a two-legged robot in a plane that runs at a speed",
    horizon=1000,
    parameter="target velocity in m/s",
    label=lambda velocity: f"{velocity[0]:.2f} m/s",
    reward=velocity_reward,
    reward_note=(
        "exact up to float32 rounding of absolute x (measured: at most 2e-5 for x below 30 m), except on the "
        "first step after a reset, where the torso position does not lag (measured: mean 0.02, at most 0.07)"
    ),
    view=View("level", ("velocity (m/s)",)),
)
