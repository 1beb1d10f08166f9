"""UmazeGoal-M (a point mass in a U-shaped maze) of the paper."""

# pyright: reportAttributeAccessIssue=false

import math
from functools import cache

import numpy as np

from mbml.envs.family import family
from mbml.envs.mujoco_env import Model, MujocoTaskEnv, paper_tasks
from mbml.envs.rendering import mujoco

# Rows run along x, columns along y; cell (i, j) is centred at (i - 0.2, j - 0.2) in the coordinates of qpos.
GRID = (
    "#####",
    "#...#",
    "###.#",
    "#...#",
    "#####",
)
MAX_SPEED = 5.0  # m/s along each axis, enforced before every step

_MODEL = """
<mujoco model="umaze">
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
  </default>
  <worldbody>
    <camera pos="3 3 8"/>
    <geom name="floor" type="plane" size="40 40 .25" pos="0 0 -0.1" contype="1" conaffinity="0"/>
    <body name="particle" pos="1.2 1.2 0">
      <geom name="particle" type="sphere" size="0.1" contype="1" rgba=".9 .3 .1 1"/>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
    </body>
    {walls}
  </worldbody>
  <actuator>
    <motor joint="x" ctrllimited="true" ctrlrange="-1 1" gear="100"/>
    <motor joint="y" ctrllimited="true" ctrlrange="-1 1" gear="100"/>
  </actuator>
</mujoco>
"""


@cache
def _model() -> Model:
    walls = (
        f'<geom type="box" pos="{i + 1} {j + 1} 0" size=".5 .5 .2" rgba=".3 .35 .5 1"/>'
        for i, row in enumerate(GRID)
        for j, cell in enumerate(row)
        if cell == "#"
    )
    return mujoco.MjModel.from_xml_string(_MODEL.format(walls="\n    ".join(walls)))


class UmazeGoalEnv(MujocoTaskEnv):
    """Reward: exp of minus the straight-line distance to the goal after the step, walls ignored; never ends.

    The observation (4) is x, y and their velocities; the actions are forces along x and y. Episodes start at
    the joint of the two arms; the goals lie in their dead ends.
    """

    frame_skip = 1

    def __init__(self, parameter: np.ndarray) -> None:
        super().__init__(parameter)
        self._goal = parameter.tolist()

    def _build_model(self, parameter: np.ndarray) -> Model:
        return _model()

    def _start(self) -> np.ndarray:
        return np.array([2.0, 3.0])

    def _layout(self) -> list[np.ndarray]:
        return [self.data.qpos, self.data.qvel]

    def _advance(self, control: np.ndarray) -> None:
        # As in D4RL: the speed limit holds before the step, so observed velocities can exceed it a little.
        np.minimum(np.maximum(self._qvel, -MAX_SPEED, out=self._qvel), MAX_SPEED, out=self._qvel)
        mujoco.mj_forward(self.model, self.data)
        super()._advance(control)

    def _location(self) -> list[float]:
        return self._qpos.tolist()

    def _reward(self, before: list[float], after: list[float], effort: float) -> tuple[float, tuple[float, ...]]:
        x, y = after
        return math.exp(-math.hypot(x - self._goal[0], y - self._goal[1])), (x, y)


def goal_reward(
    observation: np.ndarray, action: np.ndarray, next_observation: np.ndarray, goal: np.ndarray
) -> np.ndarray:
    """UmazeGoal-M's reward `[n]` from observations `[n, 4]`; actions cost nothing."""
    return np.exp(-np.linalg.norm(next_observation[:, :2].astype(np.float64) - goal, axis=1))


umaze_goal = family(
    "umaze_goal",
    UmazeGoalEnv,
    **paper_tasks("umaze_goal"),
    title="UmazeGoal-M",
    about="a point mass in a U-shaped maze that goes to a point",
    horizon=300,
    parameter="goal (x, y) in metres",
    label=lambda goal: f"({goal[0]:.2f}, {goal[1]:.2f})",
    reward=goal_reward,
    reward_note="exact up to float32 rounding of the position (measured: at most 1e-7)",
    presets={
        "laptop": {"relabel.reward_threshold": 0.02},
        "paper": {
            "collect.steps": 30_000,
            "collect.evaluation_episodes": 16,
            "teach.iterations": 50_000,
            "relabel.reward_threshold": 0.02,
            "batch_pearl.context_size": 128,
            "warmstart.online.evaluation_episodes": 16,
        },
    },
)
