"""HumanoidDir-M (run in a direction) of the paper.

Impact costs are zero and contact forces are not observed, as in the authors' data.
"""

import math

import numpy as np

from mbml.envs.family import family
from mbml.envs.mujoco_env import MujocoTaskEnv, motion, paper_family
from mbml.envs.view import View


class HumanoidDirEnv(MujocoTaskEnv):
    """Reward: 1.25 times the displacement of the centre of mass along the direction divided by the *timestep*
    (6.25 per m/s: the "M"), minus 0.1 |u|^2, plus 5 on every step; ends when the torso leaves 1-2 m.

    The observation (270) is qpos without x and y, qvel, body inertias and velocities, and joint torques.
    `achieved` follows the authors and is five times the velocity in m/s.
    """

    model_file = "humanoid.xml"
    noise = 0.01
    normal_velocity = False
    unobserved = 2

    def __init__(self, parameter: np.ndarray) -> None:
        super().__init__(parameter)
        self._timestep = float(self.model.opt.timestep)
        self._mass_share = self.model.body_mass / self.model.body_mass.sum()
        self._centres = self.data.xipos

    def _layout(self) -> list[np.ndarray]:
        data = self.data  # without the world body and the root joint, whose entries are always zero
        inertia, velocity = data.cinert[1:].reshape(-1), data.cvel[1:].reshape(-1)
        return [*super()._layout(), inertia, velocity, data.qfrc_actuator[6:]]

    def _location(self) -> list[float]:
        return self._mass_share.dot(self._centres).tolist()

    def _reward(self, before: list[float], after: list[float], effort: float) -> tuple[float, tuple[float, ...]]:
        forward, velocity = motion(before, after, self._timestep, self.task[0])
        return 1.25 * forward - 0.1 * effort + 5.0, velocity

    def _fallen(self) -> bool:
        return not 1.0 <= self._qpos[2] <= 2.0


humanoid_dir = family(
    "humanoid_dir",
    HumanoidDirEnv,
    **paper_family("humanoid_dir"),
    title="HumanoidDir-M",
    about="a humanoid that runs in a direction",
    parameter="direction, radians from the x axis",
    label=lambda angle: f"{math.degrees(angle[0]):.1f} deg",
    reward_note="none: the reward is the displacement of the centre of mass, which is not observed",
    view=View("direction", ("x (m)", "y (m)"), per_step=0.003),
)
