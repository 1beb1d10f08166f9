"""HalfCheetahVel (run at a given speed); paper, section 4.4 of the environments."""

import numpy as np

from mbml.envs.base import MujocoTaskEnv, Task, TaskDistribution, load_splits

CONTROL_WEIGHT = 0.05
TIMESTEP = 0.01  # s, of the simulator
DT = 0.05  # s, of a step


class HalfCheetahVelEnv(MujocoTaskEnv):
    """Reward: minus the distance between forward and target velocity, minus 0.05 |u|^2; never ends.

    The observation (20) is qpos without x (8), qvel (9) and the position of the torso (3), with absolute x.
    """

    model_file = "half_cheetah.xml"
    frame_skip = 5
    position_noise = 0.1
    velocity_noise = 0.1
    velocity_noise_is_normal = True

    def __init__(self, task: Task, horizon: int, pad_zeros: bool = False) -> None:
        super().__init__(task, horizon, pad_zeros)
        self._target = float(task.vector[0])

    def _layout(self) -> list[np.ndarray | int]:
        return [self.data.qpos[1:], self.data.qvel, self.data.xpos[self.model.body("torso").id]]

    def _location(self) -> float:
        return float(self._qpos[0])

    def _reward(self, before: float, after: float, effort: float) -> tuple[float, tuple[float, ...]]:
        velocity = (after - before) / self.dt
        return -abs(velocity - self._target) - CONTROL_WEIGHT * effort, (velocity,)


def velocity_reward(
    observation: np.ndarray, action: np.ndarray, next_observation: np.ndarray, task: Task
) -> np.ndarray:
    """HalfCheetahVel's reward `[n]` from observations `[n, 20]` and actions `[n, 6]`, whose limits are +-1.

    The observed torso position is one simulator step older than qpos; the velocity brings x up to date.
    """
    x_before, x_after = (
        obs[:, 17].astype(np.float64) + TIMESTEP * obs[:, 8].astype(np.float64)
        for obs in (observation, next_observation)
    )
    control = np.clip(action.astype(np.float64), -1.0, 1.0)
    speed_error = np.abs((x_after - x_before) / DT - task.vector[0])
    return -speed_error - CONTROL_WEIGHT * (control**2).sum(axis=1)


half_cheetah_vel = TaskDistribution(
    name="half_cheetah_vel",
    paper_name="HalfCheetahVel",
    horizon=1000,
    observation_size=20,
    action_size=6,
    terminates=False,
    varies="reward",
    parameter="target velocity in m/s",
    splits=load_splits("half_cheetah_vel", lambda velocity: f"{velocity[0]:.2f} m/s"),
    environment=HalfCheetahVelEnv,
    reward=velocity_reward,
    reward_note=(
        "exact up to float32 rounding of absolute x (measured: at most 2e-5 for x below 30 m), except on the "
        "first step after a reset, where the torso position does not lag (measured: mean 0.02, at most 0.07)"
    ),
)
