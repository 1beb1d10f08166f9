"""UmazeGoal-M (a point mass in a U-shaped maze); paper, section 6 of the environments."""

# pyright: reportAttributeAccessIssue=false

import math
from functools import cache

import mujoco
import numpy as np

from mbml.envs.base import Model, MujocoTaskEnv, Task, TaskDistribution, load_splits

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
    <geom name="floor" type="plane" size="40 40 .25" pos="0 0 -0.1" contype="1" conaffinity="0"/>
    <body name="particle" pos="1.2 1.2 0">
      <geom name="particle" type="sphere" size="0.1" contype="1"/>
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
        f'<geom type="box" pos="{i + 1} {j + 1} 0" size=".5 .5 .2"/>'
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
    position_noise = 0.1
    velocity_noise = 0.1
    velocity_noise_is_normal = True

    def __init__(self, task: Task, horizon: int, pad_zeros: bool = False) -> None:
        super().__init__(task, horizon, pad_zeros)
        self._goal = task.vector.tolist()

    def _build_model(self, task: Task) -> Model:
        return _model()

    def _start(self) -> np.ndarray:
        return np.array([2.0, 3.0])

    def _layout(self) -> list[np.ndarray | int]:
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


def goal_reward(observation: np.ndarray, action: np.ndarray, next_observation: np.ndarray, task: Task) -> np.ndarray:
    """UmazeGoal-M's reward `[n]` from observations `[n, 4]`; actions cost nothing."""
    return np.exp(-np.linalg.norm(next_observation[:, :2].astype(np.float64) - task.vector, axis=1))


umaze_goal = TaskDistribution(
    name="umaze_goal",
    paper_name="UmazeGoal-M",
    horizon=300,
    observation_size=4,
    action_size=2,
    terminates=False,
    varies="reward",
    parameter="goal (x, y) in metres",
    splits=load_splits("umaze_goal", lambda goal: f"({goal[0]:.2f}, {goal[1]:.2f})"),
    environment=UmazeGoalEnv,
    reward=goal_reward,
    reward_note="exact up to float32 rounding of the position (measured: at most 1e-7)",
)
