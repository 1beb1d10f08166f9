"""AntDir (run in a direction) and AntGoal (reach a point) of the paper.

Contact costs are zero and contact forces are not observed, as in the authors' data.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbml.envs.family import family
from mbml.envs.mujoco_env import MujocoTaskEnv, effort_of, motion, paper_family
from mbml.envs.view import View


class _AntEnv(MujocoTaskEnv):
    model_file = "ant.xml"

    def _place(self) -> np.ndarray:
        return self.data.body("torso").xpos[:2]


class AntDirEnv(_AntEnv):
    """Reward: velocity along the direction, minus 0.5 |u|^2, plus 1 on every step; ends when the torso leaves
    0.2-1.0 m of height. The observation (27) is qpos without x and y, then qvel.
    """

    unobserved = 2

    def _reward(self, before: list[float], after: list[float], effort: float) -> tuple[float, tuple[float, ...]]:
        forward, velocity = motion(before, after, self.dt, self.task[0])
        return forward - 0.5 * effort + 1.0, velocity

    def _fallen(self) -> bool:
        # The squared norm is finite exactly when every entry is.
        finite = math.isfinite(self._qpos.dot(self._qpos) + self._qvel.dot(self._qvel))
        return not (finite and 0.2 <= self._qpos[2] <= 1.0)


class AntGoalEnv(_AntEnv):
    """Reward: minus the L1 distance to the goal after the step, minus 0.1 |u|^2; never ends, not even upside
    down. The observation (29) is the whole of qpos, x and y included, then qvel.
    """

    def _reward(self, before: list[float], after: list[float], effort: float) -> tuple[float, tuple[float, ...]]:
        return earned_at(after, self.task, effort), (after[0], after[1])


def earned_at(position: Any, goal: Any, effort: Any) -> Any:
    """AntGoal's reward at a `position` (x, y), numbers or arrays `[n]`."""
    distance = abs(position[0] - goal[0]) + abs(position[1] - goal[1])
    return -distance - 0.1 * effort


def goal_reward(observation: NDArray, action: NDArray, next_observation: NDArray, goal: NDArray) -> NDArray:
    """AntGoal's reward `[n]` from observations `[n, 29]` and actions `[n, 8]`, whose limits are +-1."""
    return earned_at(next_observation[:, :2].T.astype(np.float64), goal, effort_of(action))


ant_dir = family(
    "ant_dir",
    AntDirEnv,
    **paper_family("ant_dir"),
    title="AntDir",
    about="a four-legged robot that runs in a direction",
    parameter="direction, radians from the x axis",
    label=lambda angle: f"{math.degrees(angle[0]):.1f} deg",
    reward_note="none: the reward is the displacement of the torso, and x and y are not observed",
    view=View("direction", ("x (m)", "y (m)"), per_step=0.05),
)

ant_goal = family(
    "ant_goal",
    AntGoalEnv,
    **paper_family("ant_goal"),
    title="AntGoal",
    about="a four-legged robot that goes to a point",
    parameter="goal (x, y) in metres",
    label=lambda goal: f"({goal[0]:.2f}, {goal[1]:.2f})",
    reward=goal_reward,
    reward_note=(
        "within millimetres: x and y are observed as qpos, the reward uses the position of the torso's frame "
        "that lags within the step (measured: mean 0.0002, at most 0.009)"
    ),
    view=View("goal", ("x (m)", "y (m)")),
)
