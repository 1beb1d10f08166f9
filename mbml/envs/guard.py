"""What an environment from outside does is watched: a fault is one sentence with its family, task and step."""

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from mbml.envs.mujoco_env import SimulationDiverged
from mbml.envs.view import ViewError


class FamilyError(ValueError):
    """A family of tasks that cannot be used; the message says what would be right."""


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Whatever a user's function does, SystemExit included, as a FamilyError that says where it comes from; faults that
    say so themselves, and physics that blew up, stay as they are."""
    try:
        yield
    except (FamilyError, ViewError, SimulationDiverged):
        raise
    except (Exception, SystemExit) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":.")
        raise FamilyError(f"{what} fails with {said} ({Path(at.filename).name}, line {at.lineno}).") from error


class Guarded(gymnasium.Wrapper):
    """Lets nothing through that is not finite, and says of an exception whose it is; for observations in a row."""

    def __init__(self, env: gymnasium.Env, task: str) -> None:
        super().__init__(env)
        self._task = task
        self._steps = 0

    def reset(self, **how: Any) -> Any:
        """As the environment's; raises FamilyError where it fails or shows what is not finite."""
        self._steps = 0
        with blaming(self._where()):
            result = self.env.reset(**how)
        self._check(result[0], 0.0)
        return result

    def step(self, action: Any) -> Any:
        """As the environment's, and so are its SimulationDiverged; raises FamilyError as `reset` does."""
        self._steps += 1
        with blaming(self._where()):
            result = self.env.step(action)
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

    def _where(self) -> str:
        return f"{self._task}: step {self._steps} of an episode" if self._steps else f"{self._task}: a reset"
