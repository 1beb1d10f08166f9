"""Training of a stack of teachers, of which every task keeps the best checkpoint, as in the paper.

Without a simulator there is no best one to be seen, and the last is kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbml import teachers
from mbml.relabel import RelabelTables
from mbml.rollout import EnvStack, mean_returns
from mbml.rows import RowLayout, Rows
from mbml.seeding import generator_of, seed_of
from mbml.settings import Count, Whole, Widths
from mbml.sharing import shared_batches
from mbml.teachers import TEACHERS, TeacherLearner, Teachers
from mbml.training import Training, batches


@dataclass(frozen=True)
class TeachingConfig:
    """How the teachers are trained; the defaults are the authors' schedule."""

    iterations: Count = 100_000
    """Updates per task."""
    evaluation_every: Count = 5_000
    """Iterations between evaluations on the true training task."""
    evaluation_episodes: Count = 10
    """Episodes per evaluation; the checkpoint with the highest mean return becomes the teacher."""
    tasks_per_actor: Whole = 1
    """Tasks learned side by side in one actor; 0: as many as the size of their networks makes best."""


@dataclass(frozen=True)
class PooledConfig:
    """One more teacher, which learns from all training tasks' transitions as if they were one task's.

    Where bodies vary and goals do not, it has seen more than any other, and may serve them all.
    """

    teacher: str | None = None
    """Its kind, one of `mbml.teachers.TEACHERS`, configured in the field of its name but for these; None: there is
    none."""
    iterations: Count = 100_000
    """Updates."""
    evaluation_every: Count = 5_000
    """Iterations between evaluations on the training tasks."""
    evaluation_episodes: Count = 3
    """Episodes per task and evaluation; the checkpoint with the highest mean return over the tasks is kept."""
    hidden: Widths = (400, 300)
    """Widths of its networks."""
    batch_size: Count = 256
    """Transitions in one iteration."""

    def __post_init__(self) -> None:
        if self.teacher is not None:
            TEACHERS[self.teacher]


class Teaching(Training[TeacherLearner]):
    """The training of T teachers of one kind on the rows of their tasks."""

    def __init__(
        self,
        teacher: str,
        learner: Any,
        config: TeachingConfig,
        layout: RowLayout,
        rows: Rows,
        make_envs: Callable[[int], EnvStack] | None,
        tasks: Sequence[int],
        seed: int,
        device: torch.device | str = "cpu",
        *,
        tables: RelabelTables | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        """`teacher` is a name in TEACHERS and `learner` its configuration; `make_envs(copies)` builds `copies`
        environments of each task, task by task, or is None where there are none; `tasks` are their indices. With
        `tables`, for a `foreign_share` of every batch, `rows` are those of all tasks that the tables are of.

        The learner and `rows` are on `device`; with `cuda_graphs` an update there is one captured graph.
        """
        self.teacher, self.config, self.tasks, self.seed, self.device = teacher, config, list(tasks), seed, device
        generator = generator_of(seed, teacher, *self.tasks, device=device)
        made = TEACHERS[teacher].make(learner, layout, len(self.tasks), generator)
        schedule = config.iterations, config.evaluation_every, self._evaluated
        if tables is None:
            draw = batches(rows, learner.batch_size, generator)
        else:
            draw = shared_batches(rows, tasks, layout, tables, learner.batch_size, learner.foreign_share, generator)
        super().__init__(made, draw, *schedule, cuda_graphs=cuda_graphs, unit="iterations")
        self.envs = make_envs(config.evaluation_episodes) if make_envs else None
        self.best = made.teachers()
        self.selected: list[dict[str, float]] = [{"task": t, "iteration": 0, "return": -np.inf} for t in self.tasks]
        """Iteration and return of every task's best checkpoint; without a simulator of the last, with no return."""

    def advance(self) -> Mapping[str, float | Tensor]:
        """Some iterations; where an evaluation is due, every task keeps the teacher that is its best."""
        super().advance()
        return {"best_return": self.best_return} if self.curve and self.envs else self._latest

    @property
    def best_return(self) -> float:
        """Mean over tasks of the selected checkpoints' returns."""
        return float(np.mean([selected["return"] for selected in self.selected]))

    def _evaluated(self, iteration: int, losses: dict[str, Tensor]) -> list[dict[str, float]]:
        columns = {name: value.tolist() for name, value in losses.items()}
        if self.envs is None:
            self.best = self.learner.teachers()
            self.selected = [{"task": task, "iteration": iteration} for task in self.tasks]
        else:
            returns = self.evaluate()
            self._select(returns)
            columns = {"return": returns.tolist(), **columns}
        return [
            {"task": task, "iteration": iteration, **{name: values[i] for name, values in columns.items()}}
            for i, task in enumerate(self.tasks)
        ]

    def evaluate(self) -> np.ndarray:
        """Mean return `[T]` of the current policies; its random numbers depend on the iteration alone."""
        copies = range(self.config.evaluation_episodes)
        places = [(task, self.done, copy) for task in self.tasks for copy in copies]
        assert self.envs is not None
        self.envs.seed([seed_of(self.seed, self.teacher, "evaluation", *place) for place in places])
        generator = generator_of(self.seed, self.teacher, "acting", self.done, *self.tasks, device=self.device)
        return mean_returns(self.envs, len(self.tasks), partial(self.learner.teachers().act, generator=generator))

    def _select(self, returns: np.ndarray) -> None:
        better = [i for i, selected in enumerate(self.selected) if returns[i] > selected["return"]]
        for i in better:
            self.selected[i] |= {"iteration": self.done, "return": float(returns[i])}
        with torch.no_grad():
            for kept, new in zip(self.best.parameters(), self.learner.teachers().parameters(), strict=True):
                kept[better] = new[better]

    def state_dict(self) -> dict[str, Any]:
        """The training's state and the selected teachers."""
        return super().state_dict() | {"best": self.best.state_dict(), "selected": self.selected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; with `cuda_graphs` before the first `advance` only."""
        super().load_state_dict(state)
        self.best: Teachers = teachers.load(state["best"]).to(self.device)
        self.selected = state["selected"]
