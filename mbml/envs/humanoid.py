"""HumanoidDir-M (run in a direction); paper, section 4.3 of the environments.

Impact costs are zero and contact forces are not observed, as in the authors' data.
"""

import math

import numpy as np

from mbml.envs.base import MujocoTaskEnv, Task, TaskDistribution, load_splits


class HumanoidDirEnv(MujocoTaskEnv):
    """Reward: 1.25 times the displacement of the centre of mass along the direction divided by the *timestep*
    (6.25 per m/s: the "M"), minus 0.1 |u|^2, plus 5 on every step; ends when the torso leaves 1-2 m.

    The observation (270) is qpos without x and y, qvel, body inertias and velocities, and joint torques.
    `achieved` follows the authors and is five times the velocity in m/s.
    """

    model_file = "humanoid.xml"
    frame_skip = 5
    position_noise = 0.01
    velocity_noise = 0.01
    velocity_noise_is_normal = False

    def __init__(self, task: Task, horizon: int, pad_zeros: bool = False) -> None:
        super().__init__(task, horizon, pad_zeros)
        angle = float(task.vector[0])
        self._direction = math.cos(angle), math.sin(angle)
        self._timestep = float(self.model.opt.timestep)
        self._mass_share = self.model.body_mass / self.model.body_mass.sum()
        self._centres = self.data.xipos

    def _layout(self) -> list[np.ndarray | int]:
        data = self.data  # the numbers are the blocks of the world body, the root joint and the contact forces
        inertia, velocity = data.cinert[1:].reshape(-1), data.cvel[1:].reshape(-1)
        return [data.qpos[2:], data.qvel, 10, inertia, 6, velocity, 6, data.qfrc_actuator[6:], 14 * 6]

    def _location(self) -> list[float]:
        return self._mass_share.dot(self._centres).tolist()

    def _reward(self, before: list[float], after: list[float], effort: float) -> tuple[float, tuple[float, ...]]:
        velocity = (after[0] - before[0]) / self._timestep, (after[1] - before[1]) / self._timestep
        forward = velocity[0] * self._direction[0] + velocity[1] * self._direction[1]
        return 1.25 * forward - 0.1 * effort + 5.0, velocity

    def _fallen(self) -> bool:
        return not 1.0 <= self._qpos[2] <= 2.0


humanoid_dir = TaskDistribution(
    name="humanoid_dir",
    paper_name="HumanoidDir-M",
    horizon=200,
    observation_size=270,
    action_size=17,
    terminates=True,
    varies="reward",
    parameter="direction, radians from the x axis",
    splits=load_splits("humanoid_dir", lambda angle: f"{math.degrees(angle[0]):.1f} deg"),
    environment=HumanoidDirEnv,
    reward=None,
    reward_note="none: the reward is the displacement of the centre of mass, which is not observed",
)
