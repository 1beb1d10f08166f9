"""Evaluation of policies on many tasks in lock-step, under generators of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbml.envs import Family, Task
from mbml.policy import AdaptivePolicy, ContextPolicy
from mbml.rollout import EnvStack, Step, run_episode
from mbml.seeding import generator_of, seed_of
from mbml.settings import Count, Whole
from mbml.teachers import Teachers


@dataclass(frozen=True)
class EvaluateConfig:
    """The evaluation protocol; the defaults are the paper's."""

    episodes: Count = 5
    """Episodes per task."""
    skipped_episodes: Whole = 2
    """First episodes that are not counted."""
    repeats: Count = 1
    """Independent repetitions of the protocol per task (averaged)."""
    train_tasks: bool = True
    """Also evaluate on the training tasks."""
    reference_episodes: Count = 5
    """Episodes per task for every reference policy."""

    def protocol(self) -> str:
        """The protocol in words, to stand beside every score."""
        repeated = f", repeated {self.repeats} times" if self.repeats > 1 else ""
        return (
            f"{self.episodes} episodes per task{repeated}, without being told the task: the first under a task "
            "embedding drawn from the prior, each later one under one drawn from the posterior of all transitions "
            "so far. "
            f"The score is the mean undiscounted return of episodes {self.skipped_episodes + 1} to {self.episodes}. "
            f"References play {self.reference_episodes} episodes per task, all counted."
        )


class Scores(NamedTuple):
    """Returns `[n, repeats, episodes]`, and the posterior mean `[n, Z]` after the last episode (first repeat)."""

    returns: np.ndarray
    posterior_mean: np.ndarray


def make_envs(distribution: Family, tasks: Sequence[Task], horizon: int | None, copies: int = 1) -> EnvStack:
    """`copies` environments of each task, task by task."""
    return EnvStack([distribution.environment(task, horizon) for task in tasks for _ in range(copies)])


def evaluate_student(
    policy: ContextPolicy,
    distribution: Family,
    tasks: Sequence[Task],
    horizon: int | None,
    config: EvaluateConfig,
    seed: int,
    report: Callable[[int], None] = lambda episodes: None,
    watch: Callable[[AdaptivePolicy], None] = lambda agent: None,
) -> Scores:
    """Run the protocol on all tasks at once; `report` hears how many episodes are done, `watch` sees the agent then.

    Environments and policy draw from `seed` alone. All tasks share the policy's generator, so the same `tasks` must be
    given for the same numbers.
    """
    envs, agent = _strangers(policy, distribution, tasks, horizon, config.repeats, seed)

    def observe(observation: Tensor, action: Tensor, step: Step, active: Tensor) -> None:
        agent.observe(observation, action, step.next_observation, step.reward, active)

    returns = []
    for episode in range(config.episodes):
        if episode:
            agent.begin_episode()
        returns.append(run_episode(envs, agent.act, observe))
        report(episode + 1)
        watch(agent)
    shape = (len(tasks), config.repeats)
    table = np.stack(returns, -1).reshape(*shape, config.episodes)
    return Scores(table, agent.belief().mean.view(*shape, -1)[:, 0].numpy())


def evaluate_last_trajectory(
    policy: ContextPolicy,
    distribution: Family,
    tasks: Sequence[Task],
    horizon: int | None,
    config: EvaluateConfig,
    seed: int,
    report: Callable[[int], None] = lambda episodes: None,
) -> np.ndarray:
    """Return of the last trajectory per task `[n]`, mean over repeats: PEARL's own protocol.

    Every task is given trajectories until `config.episodes` horizons of steps are spent in it, z as in
    `evaluate_student`; tasks that have spent theirs wait. `report` hears how many horizons are spent in all tasks.
    The random numbers are those of `evaluate_student`: where nothing terminates, this is its last episode.
    """
    envs, agent = _strangers(policy, distribution, tasks, horizon, config.repeats, seed)
    longest = distribution.horizon if horizon is None else horizon
    spent, last = np.zeros(len(envs), dtype=int), np.zeros(len(envs))

    def observe(observation: Tensor, action: Tensor, step: Step, active: Tensor) -> None:
        agent.observe(observation, action, step.next_observation, step.reward, active)
        np.add(spent, active.numpy(), out=spent)

    while (playing := spent < config.episodes * longest).any():
        if spent.any():
            agent.begin_episode()
        last = np.where(playing, run_episode(envs, agent.act, observe, playing), last)
        report(int(spent.min()) // longest)
    return last.reshape(len(tasks), config.repeats).mean(1)


def _strangers(
    policy: ContextPolicy,
    distribution: Family,
    tasks: Sequence[Task],
    horizon: int | None,
    repeats: int,
    seed: int,
) -> tuple[EnvStack, AdaptivePolicy]:
    """Seeded environments of all tasks and an agent that knows nothing about any of them yet."""
    envs = make_envs(distribution, tasks, horizon, repeats)
    envs.seed([seed_of(seed, "evaluate", t.split, t.index, r) for t in tasks for r in range(repeats)])
    return envs, AdaptivePolicy(policy, generator_of(seed, "evaluate", "policy"), tasks=len(envs))


def counted_score(returns: np.ndarray, config: EvaluateConfig) -> np.ndarray:
    """Score per task `[n]` from returns `[n, repeats, episodes]`: mean over repeats and counted episodes."""
    return returns[:, :, config.skipped_episodes :].mean((1, 2))


def evaluate_actor(act: Callable[[Tensor], Tensor], envs: EnvStack, episodes: int, seeds: Sequence[int]) -> np.ndarray:
    """Mean return `[n]` of a policy that needs no inference, over `episodes` episodes."""
    envs.seed(seeds)
    return np.mean([run_episode(envs, act) for _ in range(episodes)], axis=0)


def evaluate_teachers(
    teachers: Teachers,
    distribution: Family,
    tasks: Sequence[Task],
    horizon: int | None,
    config: EvaluateConfig,
    seed: int,
) -> np.ndarray:
    """Mean return `[K, n]` of every teacher on every task: how far one gets without inferring anything.

    Its random numbers are not those under which a checkpoint was chosen as a task's teacher, so that on the training
    tasks the diagonal is a fresh evaluation of each task's own teacher.
    """
    number = teachers.tasks
    envs = make_envs(distribution, list(tasks) * number, horizon)
    generator = generator_of(seed, "references", "teachers")

    def act(observation: Tensor) -> Tensor:
        return teachers.act(observation.view(number, len(tasks), -1), generator).flatten(0, 1)

    seeds = [seed_of(seed, "references", t.split, t.index, k) for k in range(number) for t in tasks]
    return evaluate_actor(act, envs, config.reference_episodes, seeds).reshape(number, len(tasks))


def blind_teacher(table: np.ndarray) -> int:
    """Position of the one teacher that is best over all tasks of a table `[K, n]` of `evaluate_teachers`.

    From the training tasks' table it is a choice that can be made beforehand; from that of the unseen tasks it is one
    in hindsight, which no policy is owed to beat.
    """
    return int(table.mean(1).argmax())


def own_teachers(training: np.ndarray) -> np.ndarray:
    """Fresh evaluation `[K]` of each training task's own teacher, from the training tasks' table `[K, K]`."""
    return training.diagonal().copy()


def evaluate_simple_references(
    distribution: Family,
    tasks: Sequence[Task],
    horizon: int | None,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, np.ndarray]:
    """Mean return `[n]` of uniformly random actions and of zero action."""
    envs = make_envs(distribution, tasks, horizon)
    seeds = [seed_of(seed, "references", t.split, t.index) for t in tasks]
    generator = generator_of(seed, "references", "random")
    size = distribution.action_size

    def random(observation: Tensor) -> Tensor:
        return torch.rand(len(observation), size, generator=generator) * 2 - 1

    def zero(observation: Tensor) -> Tensor:
        return torch.zeros(len(observation), size)

    return {
        "random": evaluate_actor(random, envs, config.reference_episodes, seeds),
        "zero_action": evaluate_actor(zero, envs, config.reference_episodes, seeds),
    }


def nearest_tasks(distribution: Family, tasks: Sequence[Task], train: Sequence[Task]) -> np.ndarray:
    """Position `[n]` of the training task whose parameters are nearest to each task's."""
    own, known = distribution.features(tasks), distribution.features(train)
    return np.linalg.norm(own[:, None] - known[None], axis=-1).argmin(1)
