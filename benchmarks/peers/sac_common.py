"""A replay buffer of random transitions and an environment that is only its spaces, for the two SAC peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from protocol import Measure, rate


class Spaces(gymnasium.Env):
    """Says what observations and actions look like; never stepped."""

    def __init__(self, observation_size: int, action_size: int) -> None:
        self.blank = np.zeros(observation_size, np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Zeros."""
        return self.blank, {}


def updates(
    make: Callable[[Spaces], Any], observation_size: int, action_size: int, rows: int, batch_size: int, at_once: int
) -> Measure:
    """Gradient updates per second of `model.train`, `at_once` of them in a call."""
    model = make(Spaces(observation_size, action_size))
    _fill(model.replay_buffer, rows)
    return rate(lambda: model.train(gradient_steps=at_once, batch_size=batch_size), at_once)


def _fill(buffer: Any, rows: int) -> None:
    random = np.random.default_rng(0)
    for column in (buffer.observations, buffer.next_observations, buffer.rewards):
        column[:rows] = random.standard_normal(column[:rows].shape)
    buffer.actions[:rows] = np.tanh(random.standard_normal(buffer.actions[:rows].shape))
    buffer.dones[:rows] = random.random(buffer.dones[:rows].shape) < 0.01
    buffer.pos, buffer.full = 0, True
