"""Collection: a stack of SAC learners fills one batch per task, learning history and all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbml.capture import captured
from mbml.data import TransitionBatch
from mbml.learner import check_losses
from mbml.meter import RunningMeans
from mbml.rollout import EnvStack, run_episode
from mbml.rows import RowLayout, gather_rows, sample_indices
from mbml.sac import SAC, SACConfig
from mbml.seeding import generator_of, seed_of
from mbml.settings import Count, NotNegative


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
        self.learner = learner or SAC(
            config.sac, layout, number, generator_of(seed, "collect", *self.tasks, device=device)
        )
        generator = self.learner.generator
        self._update = captured(self.learner) if cuda_graphs else self.learner.update
        self.envs = make_envs(1)
        self.envs.seed([seed_of(seed, "collect", "environment", task) for task in self.tasks])
        self.evaluation_envs = make_envs(config.evaluation_episodes)
        self.rows = torch.zeros(number, config.steps, layout.row_size, device=generator.device)
        self.truncated = np.zeros((number, config.steps), dtype=bool)
        self.episode = np.zeros((number, config.steps), dtype=np.int32)
        self.step_in_episode = np.zeros((number, config.steps), dtype=np.int32)
        self.done, self.total, self.epoch = 0, config.steps, 0
        self.curve: list[dict[str, float]] = []

    def advance(self) -> dict[str, float]:
        """Collect one round and learn from it; every so many rounds evaluate, which adds to `curve`.

        Returns the mean return of the last evaluation, if there was one. Raises NotFinite.
        """
        config = self.config
        if self.done == 0:
            self._collect(min(config.warmup_steps, config.steps))
        else:
            self._collect(min(config.epoch_steps, config.steps - self.done))
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
        self.curve += [
            {"task": task, "step": self.done, "return": float(value), **(losses or {})}
            for task, value in zip(self.tasks, self.evaluate(), strict=True)
        ]

    def _collect(self, steps: int) -> None:
        self.envs.reset()
        step_in_episode = np.zeros(len(self.tasks), dtype=np.int32)
        episode = self.episode[:, self.done - 1] + 1 if self.done else np.zeros_like(step_in_episode)
        observation = self.envs.observation
        for t in range(self.done, self.done + steps):
            action = self.learner.act(observation.unsqueeze(1)).squeeze(1)
            result = self.envs.step(action)
            while (lost := result.diverged).any():
                # Those episodes end, cut, with the row before; the first step of a new one takes this row.
                cut = lost.numpy() & (step_in_episode > 0)
                self.truncated[cut, t - 1] = True
                episode = episode + cut
                step_in_episode = np.where(lost, 0, step_in_episode)
                self.envs.reset(np.flatnonzero(lost).tolist())
                observation = torch.where(lost.unsqueeze(1), self.envs.observation, observation)
                again = self.learner.act(observation.unsqueeze(1)).squeeze(1)
                action = torch.where(lost.unsqueeze(1), again, action)
                result = result.joined(self.envs.step(action, lost.numpy()))
            parts = [observation, action, result.next_observation]
            scalars = [result.reward.unsqueeze(1), result.terminated.float().unsqueeze(1)]
            self.rows[:, t] = torch.cat([*parts, *scalars], 1)
            self.truncated[:, t] = result.truncated.numpy()
            self.episode[:, t], self.step_in_episode[:, t] = episode, step_in_episode
            over = (result.terminated | result.truncated).numpy()
            self.envs.reset(np.flatnonzero(over).tolist())
            episode = np.where(over, episode + 1, episode)
            step_in_episode = np.where(over, 0, step_in_episode + 1)
            observation = self.envs.observation
        # The round ends here whatever the environments do: an episode still running is cut, which is no termination.
        last = self.done + steps - 1
        self.truncated[:, last] |= self.rows[:, last, -1].cpu().numpy() == 0
        self.done += steps

    def _learn(self) -> dict[str, float]:
        """The updates that the steps collected so far have earned; mean losses over updates and tasks."""
        config = self.config
        earned = int((self.done - config.warmup_steps) * config.updates_per_step)
        size = config.sac.batch_size * self.learner.batches_per_update
        means = RunningMeans()
        while self.learner.steps_done < earned:
            indices = sample_indices(len(self.tasks), size, self.done, self.learner.generator)
            means.add(self._update(gather_rows(self.rows, indices)))
        losses = means.take()
        check_losses(losses, self.learner.steps_done)
        return {name: float(value.mean()) for name, value in losses.items()}

    def evaluate(self) -> np.ndarray:
        """Mean return `[T]` of the deterministic policy over the evaluation episodes, each from its own seed."""
        copies = self.config.evaluation_episodes
        number = len(self.tasks)
        self.evaluation_envs.seed(
            [seed_of(self.seed, "collect", "evaluation", t, self.epoch, c) for t in self.tasks for c in range(copies)]
        )

        def act(observation: Tensor) -> Tensor:
            return self.learner.act(observation.view(number, copies, -1), deterministic=True).flatten(0, 1)

        return run_episode(self.evaluation_envs, act).reshape(number, copies).mean(1)

    def batches(self) -> list[TransitionBatch]:
        """The finished batch of every task, in the order of collection."""
        result = []
        for i in range(len(self.tasks)):
            *vectors, reward, terminated = (part.numpy().copy() for part in self.layout.split(self.rows[i].cpu()))
            columns = [*vectors, reward[:, 0], terminated[:, 0] > 0, *(column[i] for column in self._columns())]
            result.append(TransitionBatch(*columns))
        return result

    def _columns(self) -> tuple[np.ndarray, ...]:
        """What a transition has beside its row, each `[T, N]`."""
        return self.truncated, self.episode, self.step_in_episode

    def state_dict(self) -> dict[str, Any]:
        """Learner, environments' generators, everything collected so far, and counters."""
        end = self.done
        return {
            "learner": self.learner.state_dict(),
            "environments": self.envs.random_states(),
            "rows": self.rows[:, :end],
            "columns": [torch.from_numpy(column[:, :end]) for column in self._columns()],
            "epoch": self.epoch,
            "curve": self.curve,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; with `cuda_graphs` before the first `advance` only."""
        self.learner.load_state_dict(state["learner"])
        self.envs.set_random_states(state["environments"])
        self.done = end = state["rows"].shape[1]
        self.rows[:, :end] = state["rows"]
        for column, saved in zip(self._columns(), state["columns"], strict=True):
            column[:, :end] = saved.numpy()
        self.epoch, self.curve = state["epoch"], state["curve"]
