"""Collection: a stack of SAC learners fills one batch per task, learning history and all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from mbml.capture import captured
from mbml.data import TransitionBatch
from mbml.learner import check_losses
from mbml.rollout import EnvStack, mean_returns
from mbml.rows import RowLayout, gather_rows, sample_indices
from mbml.sac import SAC, SACConfig
from mbml.seeding import generator_of, seed_of
from mbml.settings import Count, NotNegative
from mbml.training import RunningMeans


@dataclass(frozen=True)
class CollectConfig:
    """How a batch is collected; the defaults are the authors' schedule."""

    steps: Count = 200_000
    """Transitions N kept per task: the first N of training, warm-up included."""
    warmup_steps: Count = 10_000
    """Steps of the untrained stochastic policy before the first update."""
    epoch_steps: Count = 1_000
    """Environment steps between two rounds of updates; an episode is cut at the end of each."""
    updates_per_step: NotNegative = 1.0
    """Gradient updates per environment step."""
    evaluation_every: Count = 1
    """Epochs between evaluations of the deterministic policy."""
    evaluation_episodes: Count = 25
    """Episodes per evaluation."""
    tasks_per_actor: Count = 1
    """Tasks learned side by side in one actor."""
    sac: SACConfig = field(default_factory=SACConfig)
    """The learner."""


class Collection:
    """The collection of a stack of T tasks; a Process.

    Every call to `advance` is one round: environment steps from fresh episodes, then as many updates as they earn.
    The state between rounds is complete in `state_dict`, so a resumed collection gives the same bits.
    """

    unit = "steps"

    def __init__(
        self,
        config: CollectConfig,
        layout: RowLayout,
        make_envs: Callable[[int], EnvStack],
        tasks: Sequence[int],
        seed: int | str,
        learner: SAC | None = None,
        device: torch.device | str = "cpu",
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """`make_envs(copies)` builds `copies` environments of each task, task by task; `tasks` are their indices.

        Without a `learner` a new one starts from random networks on `device`. The rows are kept where the learner is;
        with `cuda_graphs` an update on a GPU is one captured graph.
        """
        self.config, self.layout, self.tasks, self.seed = config, layout, list(tasks), seed
        number = len(self.tasks)
        generator = generator_of(seed, "collect", *self.tasks, device=device)
        self.learner = learner or SAC(config.sac, layout, number, generator)
        self._update = captured(self.learner) if cuda_graphs else self.learner.update
        self.envs = make_envs(1)
        self.envs.seed([seed_of(seed, "collect", "environment", task) for task in self.tasks])
        self.evaluation_envs = make_envs(config.evaluation_episodes)
        self.rows = torch.zeros(number, config.steps, layout.row_size, device=self.learner.generator.device)
        self.truncated = np.zeros((number, config.steps), dtype=bool)
        self.done, self.total, self.epoch, self.given = 0, config.steps, 0, 0
        self.curve: list[dict[str, float]] = []

    def give(self, rows: torch.Tensor) -> None:
        """Let the learner learn from rows `[T, n, row]` of somebody else as well; they are no part of the batch."""
        self.rows, self.given = torch.cat([rows.to(self.rows.device), self.rows[:, self.given :]], 1), rows.shape[1]

    def advance(self) -> dict[str, float]:
        """Collect one round and learn from it; every so many rounds evaluate, which adds to `curve`.

        Returns the mean return of the last evaluation, if there was one. Raises NotFinite.
        """
        config = self.config
        steps = config.epoch_steps if self.done else config.warmup_steps
        self._collect(min(steps, config.steps - self.done))
        if self.done > config.warmup_steps or self.done == self.total:
            losses = self._learn()
            self.epoch += 1
            if self.epoch % config.evaluation_every == 0 or self.done == self.total:
                self.record(losses)
        return self.latest()

    def latest(self) -> dict[str, float]:
        """Mean return of the last evaluation; empty before the first."""
        returns = [point["return"] for point in self.curve[-len(self.tasks) :]]
        return {"return": sum(returns) / len(returns)} if returns else {}

    def record(self, losses: dict[str, float] | None = None) -> None:
        """Evaluate the present policy and add it to `curve`, with `losses` beside it; raises NotFinite."""
        self.learner.check_finite()
        for task, value in zip(self.tasks, self.evaluate(), strict=True):
            self.curve.append({"task": task, "step": self.done, "return": float(value), **(losses or {})})

    def _collect(self, steps: int) -> None:
        self.envs.reset()
        observation = self.envs.observation
        for t in range(self.done, self.done + steps):
            action = self.learner.act(observation.unsqueeze(1)).squeeze(1)
            result = self.envs.step(action)
            while (lost := result.diverged).any():
                # Those episodes end, cut, with the row before; the first step of a new one takes this row.
                if t > 0:
                    self._cut(t - 1, lost.numpy())
                self.envs.reset(np.flatnonzero(lost).tolist())
                observation = torch.where(lost.unsqueeze(1), self.envs.observation, observation)
                again = self.learner.act(observation.unsqueeze(1)).squeeze(1)
                action = torch.where(lost.unsqueeze(1), again, action)
                result = result.joined(self.envs.step(action, lost.numpy()))
            self.rows[:, self.given + t] = result.rows(observation, action)
            self.truncated[:, t] = result.truncated.numpy()
            self.envs.reset(np.flatnonzero(result.terminated | result.truncated).tolist())
            observation = self.envs.observation
        # The round ends here whatever the environments do.
        self._cut(self.done + steps - 1, np.ones(len(self.tasks), dtype=bool))
        self.done += steps

    def _cut(self, t: int, which: np.ndarray) -> None:
        """End the episodes of the tasks `which` `[T]` that are still running after row t, which is no termination."""
        self.truncated[:, t] |= which & (self.rows[:, self.given + t, -1].cpu().numpy() == 0)

    def _learn(self) -> dict[str, float]:
        """The updates that the steps collected so far have earned; mean losses over updates and tasks."""
        config = self.config
        earned = int((self.done - config.warmup_steps) * config.updates_per_step)
        size = config.sac.batch_size * self.learner.batches_per_update
        means = RunningMeans()
        while self.learner.steps_done < earned:
            indices = sample_indices(len(self.tasks), size, self.given + self.done, self.learner.generator)
            means.add(self._update(gather_rows(self.rows, indices)))
        losses = means.take()
        check_losses(losses, self.learner.steps_done)
        return {name: float(value.mean()) for name, value in losses.items()}

    def evaluate(self) -> np.ndarray:
        """Mean return `[T]` of the deterministic policy over the evaluation episodes, each from its own seed."""
        copies = range(self.config.evaluation_episodes)
        seeds = [seed_of(self.seed, "collect", "evaluation", t, self.epoch, c) for t in self.tasks for c in copies]
        self.evaluation_envs.seed(seeds)
        return mean_returns(self.evaluation_envs, len(self.tasks), partial(self.learner.act, deterministic=True))

    def batches(self) -> list[TransitionBatch]:
        """The finished batch of every task, in the order of collection."""
        result = []
        for rows, truncated in zip(self.rows[:, self.given :].cpu(), self.truncated, strict=True):
            *vectors, reward, terminated = (part.numpy().copy() for part in self.layout.split(rows))
            ends = (terminated[:, 0] > 0) | truncated
            columns = [*vectors, reward[:, 0], terminated[:, 0] > 0, truncated, *numbered(ends)]
            result.append(TransitionBatch(*columns))
        return result

    def state_dict(self) -> dict[str, Any]:
        """Learner, environments' generators, everything collected so far, and counters."""
        return {
            "learner": self.learner.state_dict(),
            "environments": self.envs.random_states(),
            "given": self.given,
            "rows": self.rows[:, : self.given + self.done],
            "truncated": torch.from_numpy(self.truncated[:, : self.done]),
            "epoch": self.epoch,
            "curve": self.curve,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; with `cuda_graphs` before the first `advance` only."""
        self.learner.load_state_dict(state["learner"])
        self.envs.set_random_states(state["environments"])
        rows = state["rows"]
        self.give(rows[:, : state["given"]])
        self.done = end = rows.shape[1] - self.given
        self.rows[:, : self.given + end] = rows
        self.truncated[:, :end] = state["truncated"].numpy()
        self.epoch, self.curve = state["epoch"], state["curve"]


def numbered(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every row the number of its episode and of its step in there, int32 `[N]`, given where episodes end."""
    starts = np.flatnonzero(np.append(True, ends[:-1]))
    episode = np.cumsum(ends) - ends
    return episode.astype(np.int32), (np.arange(len(ends)) - starts[episode]).astype(np.int32)
