"""A family of tasks outside the package: gymnasium's pendulum under different gravity.

    python -m pipeline run --env examples.pendulum_gravity:pendulum_gravity

collects, learns, relabels, distils, evaluates and reports in under two minutes on two cores. A family of your own is a
file like this one, anywhere on Python's path or in the current directory: `--env my_module:my_family`.
"""

import gymnasium
import numpy as np

from mbml.envs import family

TORQUE = 2.0  # N m, what the action 1 stands for


def make(gravity: np.ndarray) -> gymnasium.Env:
    """The environment of one task."""
    return gymnasium.make("Pendulum-v1", g=float(gravity[0]), disable_env_checker=True)


def reward(
    observation: np.ndarray, action: np.ndarray, next_observation: np.ndarray, gravity: np.ndarray
) -> np.ndarray:
    """Pendulum-v1's reward, which is about the state before the step and the same under any gravity."""
    cosine, sine, speed = observation.T.astype(np.float64)
    effort = TORQUE * action[:, 0].astype(np.float64)
    return -(np.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * effort**2)


SMALL = {
    "collect.steps": 6_000,
    "collect.evaluation_every": 4,
    "teach.iterations": 2_000,
    "teach.evaluation_every": 1_000,
    "models.reward.steps": 500,
    "models.next_observation.steps": 1_000,
    "relabel.pool": 2_000,
    "evidence.steps": 600,
    "distill.steps": 600,
}

pendulum_gravity = family(
    "pendulum_gravity",
    make,
    train=[3, 6, 9, 12],
    test=[4.5, 7.5, 10.5],
    horizon=200,
    varies="dynamics",
    parameter="gravity in m/s^2",
    label=lambda gravity: f"{gravity[0]:g} m/s2",
    reward=reward,
    reward_note="exact up to float32 rounding of the observation",
    presets={"smoke": {"test_tasks": 1}, "laptop": SMALL},
    title="Pendulum under gravity",
    about="a pendulum with a weak motor that is to stand upright",
)
