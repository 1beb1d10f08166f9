"""UmazeGoal-M (a point mass in a U-shaped maze) of the paper."""

# pyright: reportAttributeAccessIssue=false

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mbml.envs.family import family
from mbml.envs.mujoco_env import MujocoTaskEnv, paper_family
from mbml.envs.rendering import mujoco
from mbml.envs.view import View

MAX_SPEED = 5.0  # m/s along each axis, enforced before every step
MAZE = ("#####", "#...#", "###.#", "#...#", "#####")
"""As in umaze.xml: rows run along x, columns along y, and cell (1, 1) of 0, 1, ... is centred at (0.8, 0.8)."""


class UmazeGoalEnv(MujocoTaskEnv):
    """Reward: exp of minus the straight-line distance to the goal after the step, walls ignored; never ends.

    The observation (4) is x, y and their velocities; the actions are forces along x and y. Episodes start at
    the joint of the two arms; the goals lie in their dead ends.
    """

    model_file = str(Path(__file__).with_name("umaze.xml"))
    frame_skip = 1

    def _start(self) -> np.ndarray:
        return np.array([2.0, 3.0])

    def _advance(self, control: np.ndarray) -> None:
        # As in D4RL: the speed limit holds before the step, so observed velocities can exceed it a little.
        np.minimum(np.maximum(self._qvel, -MAX_SPEED, out=self._qvel), MAX_SPEED, out=self._qvel)
        mujoco.mj_forward(self.model, self.data)
        super()._advance(control)

    def _reward(self, before: list[float], after: list[float], effort: float) -> tuple[float, tuple[float, ...]]:
        return math.exp(-math.hypot(after[0] - self.task[0], after[1] - self.task[1])), tuple(after)


def goal_reward(observation: NDArray, action: NDArray, next_observation: NDArray, goal: NDArray) -> NDArray:
    """UmazeGoal-M's reward `[n]` from observations `[n, 4]`; actions cost nothing."""
    return np.exp(-np.linalg.norm(next_observation[:, :2].astype(np.float64) - goal, axis=1))


umaze_goal = family(
    "umaze_goal",
    UmazeGoalEnv,
    **paper_family("umaze_goal"),
    title="UmazeGoal-M",
    about="a point mass in a U-shaped maze that goes to a point",
    horizon=300,
    parameter="goal (x, y) in metres",
    label=lambda goal: f"({goal[0]:.2f}, {goal[1]:.2f})",
    reward=goal_reward,
    reward_note="exact up to float32 rounding of the position (measured: at most 1e-7)",
    view=View(
        "goal",
        ("x (m)", "y (m)"),
        walls=tuple((i - 0.7, j - 0.7, 1.0, 1.0) for i, row in enumerate(MAZE) for j, c in enumerate(row) if c == "#"),
    ),
)
