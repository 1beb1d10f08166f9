"""What the stages expect of `mbml` and it does not have yet, made of what it has: processes, and learners by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

import mbml.teaching
from mbml.baselines.batch_pearl import BatchPEARL
from mbml.baselines.contextual_bcq import ContextualBCQ
from mbml.bcq import BCQConfig
from mbml.distill import MultiTaskLearner
from mbml.meter import RunningMeans
from mbml.settings import Count

LEARNERS: dict[str, Callable[..., Any]] = {
    "distill": MultiTaskLearner,
    "contextual_bcq": lambda config, layout, rows, teachers, tables, *generators: ContextualBCQ(
        config, layout, rows, *generators
    ),
    "batch_pearl": lambda config, layout, rows, teachers, tables, *generators: BatchPEARL(
        config, layout, rows, *generators
    ),
}
"""Multi-task learners by the name of their configuration."""


@dataclass(frozen=True)
class TeachingConfig:
    """How the teachers are trained; the defaults are the authors' schedule."""

    iterations: Count = 100_000
    """Iterations per task."""
    evaluation_every: Count = 5_000
    """Iterations between evaluations on the true training task."""
    evaluation_episodes: Count = 10
    """Episodes per evaluation; the checkpoint with the highest mean return becomes the teacher."""
    tasks_per_actor: Count = 1
    """Tasks learned side by side in one actor."""

    def with_learner(self, learner: BCQConfig) -> mbml.teaching.TeachingConfig:
        """Both in one, as `Teaching` takes them."""
        return mbml.teaching.TeachingConfig(**vars(self), learner=learner)


class Finishing:
    """A process of something with `advance` and `finished`."""

    def __init__(self, inner: Any, count: str, total: int, unit: str) -> None:
        self.inner, self.total, self.unit, self._count = inner, total, unit, count.split(".")

    @property
    def done(self) -> int:
        value = self.inner
        for name in self._count:
            value = getattr(value, name)
        return value

    def advance(self) -> Mapping[str, Any]:
        self.inner.advance()
        returns = [row["return"] for row in self.inner.curve[-len(getattr(self.inner, "tasks", [0])) :]]
        return {"return": sum(returns) / len(returns)} if returns else {}

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


class Training:
    """A process: updates with their losses averaged; every so many steps something is due, or a line of the curve."""

    unit = "steps"

    def __init__(
        self,
        learner: Any,
        update: Callable[[], dict[str, Tensor]],
        steps: int,
        every: int,
        on_due: Callable[[int], None],
        log_points: int,
        generator: Generator | None = None,
        average: bool = True,
    ) -> None:
        """`on_due(step)` is called every `every` steps and at the end; `generator` is one that the learner does not
        save; without `average` a line has the last update's losses."""
        self.learner, self.total, self.done, self._update = learner, steps, 0, update
        self._every, self._on_due, self._log_every = every, on_due, max(1, steps // log_points)
        self._means, self._generator, self._average = RunningMeans(), generator, average
        self.curve: list[dict[str, Any]] = []

    def advance(self) -> Mapping[str, Any]:
        while True:
            if not self._average:
                self._means.take()
            self._means.add(self._update())
            self.done += 1
            due = self.done % self._every == 0 or self.done == self.total
            if due:
                self._on_due(self.done)
            if self.done % self._log_every == 0:
                losses = {name: float(value.mean()) for name, value in self._means.take().items()}
                self.curve.append({"step": self.done, **losses})
                return losses
            if due:
                return {}

    def state_dict(self) -> dict[str, Any]:
        state = {"done": self.done, "learner": self.learner.state_dict(), "curve": self.curve}
        state |= {"means": self._means.state_dict()}
        return state | ({"generator": self._generator.get_state()} if self._generator is not None else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done, self.curve = state["done"], state["curve"]
        self.learner.load_state_dict(state["learner"])
        self._means.load_state_dict(state["means"])
        if self._generator is not None:
            self._generator.set_state(state["generator"])
