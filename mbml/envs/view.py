"""What behaviour in a family looks like: which of its numbers a picture shows, and the wrapper that keeps them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gymnasium
import numpy as np

Kind = Literal["goal", "direction", "level", "progress", "reward"]
KINDS: tuple[str, ...] = get_args(Kind)
_SIZES = {"goal": (2, 2), "direction": (2, 1), "level": (1, 1), "progress": (1, 0), "reward": (1, 0)}
"""Numbers that are shown, and numbers of a task's feature that they are compared with."""


class ViewError(ValueError):
    """What a family shows does not fit its environments; the message says what would be right."""


@dataclass(frozen=True)
class View:
    """What is shown of an episode: `info["achieved"]` of every step or, for "reward", what the step earned.

    The kinds, by what is compared with the task's feature (`Family.feature`): a path in the plane with the "goal"
    (x, y); a path from the origin with the "direction", radians from the x axis; a number over time with the "level"
    that it should have; "progress" and "reward" over time with nothing.
    """

    kind: Kind = "reward"
    axes: tuple[str, ...] = ("reward of a step",)
    """Name and unit of every number."""
    per_step: float | None = None
    """A step goes so many times what it achieved, and the sum is shown; None shows each step's own."""
    walls: tuple[tuple[float, float, float, float], ...] = ()
    """Rectangles in the plane: x and y of a corner, width, height."""

    def fault(self, feature: Callable[[], np.ndarray]) -> str:
        """Why it cannot show tasks with such a feature; "" if it can."""
        if self.kind not in KINDS:
            return f"shows {self.kind!r}; it must be one of {', '.join(KINDS)}"
        shown, compared = _SIZES[self.kind]
        if len(self.axes) != shown:
            return f"shows a {self.kind} with {len(self.axes)} axes; it needs {shown}"
        if compared and (size := np.size(feature())) != compared:
            return f"compares a {self.kind} with {size} numbers of a task; it needs {compared}"
        return ""


REWARDS = View()


class Recorder(gymnasium.Wrapper):
    """Keeps what is shown of every episode that its environment plays."""

    def __init__(self, env: gymnasium.Env, view: View) -> None:
        super().__init__(env)
        self._view = view
        self._episodes: list[list[Any]] = []

    def reset(self, **how: Any) -> Any:
        """As the environment's."""
        self._episodes.append([])
        return super().reset(**how)

    def step(self, action: Any) -> Any:
        """As the environment's; raises ViewError where it does not say what it achieved."""
        result = super().step(action)
        shown: Any = result[1] if self._view.kind == "reward" else result[4].get("achieved")
        size = len(self._view.axes)
        if np.size(shown) != size or shown is None:
            raise ViewError(f'This family shows info["achieved"], so every step needs {size} numbers of that name.')
        self._episodes[-1].append(np.ravel(shown))
        return result

    def shown(self) -> list[np.ndarray]:
        """What is shown `[steps, axes]` (float64) of each episode that had a step, after every step."""
        found = [np.array(episode, dtype=np.float64) for episode in self._episodes if episode]
        scale = self._view.per_step
        return found if scale is None else [scale * np.cumsum(episode, axis=0) for episode in found]
