"""What an environment from outside does is watched: a fault is one sentence with its family, task and step."""

import math
import traceback
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from mbml.envs.mujoco_env import SimulationDiverged


class FamilyError(ValueError):
    """A family of tasks that cannot be used; the message says what would be right."""


class Guarded(gymnasium.Wrapper):
    """Lets nothing through that is not finite, and says of an exception whose it is; for observations in a row."""

    def __init__(self, env: gymnasium.Env, task: str) -> None:
        super().__init__(env)
        self._task = task
        self._steps = 0

    def reset(self, **how: Any) -> Any:
        """As the environment's; raises FamilyError where it fails or shows what is not finite."""
        self._steps = 0
        try:
            result = self.env.reset(**how)
        except Exception as error:  # whatever a user's function does
            raise self._failed(error) from error
        self._check(result[0], 0.0)
        return result

    def step(self, action: Any) -> Any:
        """As the environment's, and so are its SimulationDiverged; raises FamilyError as `reset` does."""
        self._steps += 1
        try:
            result = self.env.step(action)
        except SimulationDiverged:
            raise
        except Exception as error:
            raise self._failed(error) from error
        self._check(result[0], result[1])
        return result

    def _check(self, observation: np.ndarray, reward: Any) -> None:
        try:
            sound = math.isfinite(reward)
        except (TypeError, ValueError):  # None, or an array
            sound = False
        if not sound:
            raise FamilyError(f"{self._where()} has the reward {reward!r}; it must be one finite number.")
        if not (finite := np.isfinite(observation)).all():
            place = int(finite.argmin())
            fault = f"{self._where()} has {observation[place]} as number {place} (from 0) of its observation"
            raise FamilyError(f"{fault}; all must be finite.")

    def _failed(self, error: Exception) -> FamilyError:
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":.")
        return FamilyError(f"{self._where()} fails with {said} ({Path(at.filename).name}, line {at.lineno}).")

    def _where(self) -> str:
        return f"{self._task}: step {self._steps} of an episode" if self._steps else f"{self._task}: a reset"
