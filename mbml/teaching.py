"""Training of a stack of BCQ teachers, with the checkpoint selection of the paper (specification, section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbml.bcq import BCQ, BCQConfig, Teachers
from mbml.capture import captured
from mbml.meter import RunningMeans
from mbml.rollout import EnvStack, run_episode
from mbml.rows import RowLayout, Rows, gather_rows, sample_indices
from mbml.seeding import generator_of, seed_of

_CHUNK = 100


@dataclass(frozen=True)
class TeachingConfig:
    """How the teachers are trained; the defaults are the authors' schedule."""

    iterations: int = 100_000
    """BCQ iterations per task."""
    evaluation_every: int = 5_000
    """Iterations between evaluations on the true training task."""
    evaluation_episodes: int = 10
    """Episodes per evaluation; the checkpoint with the highest mean return becomes the teacher."""
    tasks_per_actor: int = 1
    """Tasks learned side by side in one actor."""
    learner: BCQConfig = field(default_factory=BCQConfig)
    """The learner."""


class Teaching:
    """The training of T teachers on their batches `[T, N, row]`: call `advance` until `finished`."""

    def __init__(
        self,
        config: TeachingConfig,
        layout: RowLayout,
        rows: Rows,
        make_envs: Callable[[int], EnvStack],
        tasks: Sequence[int],
        seed: int,
        device: torch.device | str = "cpu",
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """`make_envs(copies)` builds `copies` environments of each task, task by task; `tasks` are their indices.

        The learner and `rows` are on `device`; with `cuda_graphs` an update there is one captured graph.
        """
        self.config, self.rows, self.tasks, self.seed, self.device = config, rows, list(tasks), seed, device
        generator = generator_of(seed, "bcq", *self.tasks, device=device)
        self.learner = BCQ(config.learner, layout, len(self.tasks), generator)
        self._update = captured(self.learner, generator) if cuda_graphs else self.learner.update
        self.envs = make_envs(config.evaluation_episodes)
        self.best = self.learner.teachers()
        self.best_return = np.full(len(self.tasks), -np.inf)
        self.best_iteration = np.zeros(len(self.tasks), dtype=int)
        self.iteration = 0
        self.curve: list[dict[str, float]] = []
        self._means = RunningMeans()

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return self.iteration >= self.config.iterations

    def advance(self) -> None:
        """Some iterations; where an evaluation is due, evaluate every task and keep the teachers that are its best."""
        config = self.config
        due = min(config.iterations, (self.iteration // config.evaluation_every + 1) * config.evaluation_every)
        until = min(self.iteration + _CHUNK, due)
        while self.iteration < until:
            indices = sample_indices(
                len(self.tasks), config.learner.batch_size, self.rows.shape[1], self.learner.generator
            )
            self._means.add(self._update(gather_rows(self.rows, indices)))
            self.iteration += 1
        if self.iteration == due:
            self._evaluate_and_select()

    def _evaluate_and_select(self) -> None:
        returns = self.evaluate()
        self._select(returns)
        losses = {name: value.tolist() for name, value in self._means.take().items()}
        self.curve += [
            {
                "task": task,
                "iteration": self.iteration,
                "return": float(returns[i]),
                **{name: values[i] for name, values in losses.items()},
            }
            for i, task in enumerate(self.tasks)
        ]

    def evaluate(self) -> np.ndarray:
        """Mean return `[T]` of the current policies; its random numbers depend on the iteration alone."""
        copies, number = self.config.evaluation_episodes, len(self.tasks)
        self.envs.seed(
            [seed_of(self.seed, "bcq", "evaluation", t, self.iteration, c) for t in self.tasks for c in range(copies)]
        )
        generator = generator_of(self.seed, "bcq", "acting", self.iteration, *self.tasks, device=self.device)
        policies = self.learner.teachers()

        def act(observation: Tensor) -> Tensor:
            grouped = observation.view(number, copies, -1)
            return policies.act(grouped, generator, self.config.learner.acting_candidates).flatten(0, 1)

        return run_episode(self.envs, act).reshape(number, copies).mean(1)

    def _select(self, returns: np.ndarray) -> None:
        better = np.flatnonzero(returns > self.best_return)
        self.best_return[better], self.best_iteration[better] = returns[better], self.iteration
        current = self.learner.teachers()
        with torch.no_grad():
            for kept, new in zip(self.best.parameters(), current.parameters(), strict=True):
                kept[better] = new[better]

    def selected(self) -> list[dict[str, float]]:
        """Iteration and return of every task's selected checkpoint."""
        return [
            {"task": task, "iteration": int(self.best_iteration[i]), "return": float(self.best_return[i])}
            for i, task in enumerate(self.tasks)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Learner, selected teachers and counters."""
        return {
            "learner": self.learner.state_dict(),
            "best": self.best.state_dict(),
            "best_return": self.best_return.tolist(),
            "best_iteration": self.best_iteration.tolist(),
            "iteration": self.iteration,
            "curve": self.curve,
            "means": self._means.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; with `cuda_graphs` before the first `advance` only."""
        self.learner.load_state_dict(state["learner"])
        self.best = Teachers.load(state["best"]).to(self.device)
        self.best_return = np.array(state["best_return"])
        self.best_iteration = np.array(state["best_iteration"])
        self.iteration, self.curve = state["iteration"], state["curve"]
        self._means.load_state_dict(state["means"])
