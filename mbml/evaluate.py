"""Evaluation of policies on many tasks in lock-step, under generators of its own."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbml.envs import Family, Task
from mbml.envs.view import Recorder
from mbml.policy import ContextAgent, ContextPolicy
from mbml.rollout import EnvStack, Step, run_episode
from mbml.seeding import generator_of, seed_of
from mbml.settings import Count, Whole, later
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
    most_tasks: Count = later(64)
    """Training tasks at most, evenly spread, that are played and looked into, and whose teachers are compared; of logs,
    those whose values are fitted."""

    def protocol(self) -> str:
        """The protocol in words, to stand beside every score."""
        repeated = f", repeated {self.repeats} times" if self.repeats > 1 else ""
        return (
            f"{self.episodes} episodes per task{repeated}, without being told the task: under a task embedding drawn "
            "from the posterior of all transitions so far (at first the prior), before every episode or as often as "
            "the method says. The score is the mean undiscounted return of episodes "
            f"{self.skipped_episodes + 1} to {self.episodes}. References play {self.reference_episodes} episodes per "
            "task, all counted; the likelihood teacher plays like the policies."
        )


class Scores(NamedTuple):
    """Returns `[n, repeats, episodes]`, and the posterior mean `[n, Z]` after the last episode (first repeat)."""

    returns: np.ndarray
    posterior_mean: np.ndarray


def make_envs(distribution: Family, tasks: Sequence[Task], horizon: int | None, copies: int = 1) -> EnvStack:
    """`copies` environments of each task, task by task."""
    return EnvStack([distribution.environment(task, horizon) for task in tasks for _ in range(copies)])


@dataclass(frozen=True)
class Evaluation:
    """What is played: `tasks` of a family, `horizon` steps an episode (None: the family's), by a protocol.

    All random numbers come from `seed`. All tasks share the generator of the policy, so the same `tasks` must be given
    for the same numbers.
    """

    family: Family
    tasks: Sequence[Task]
    horizon: int | None
    config: EvaluateConfig
    seed: int

    def envs(self, purpose: str) -> EnvStack:
        """`config.repeats` seeded environments of each task, task by task."""
        repeats = range(self.config.repeats)
        envs = make_envs(self.family, self.tasks, self.horizon, len(repeats))
        envs.seed([seed_of(self.seed, purpose, t.split, t.index, r) for t in self.tasks for r in repeats])
        return envs

    def stranger(self, policy: ContextPolicy) -> ContextAgent:
        """An agent for the environments of all tasks, which knows nothing about any of them yet."""
        generator = generator_of(self.seed, "evaluate", "policy")
        return ContextAgent(policy, generator, len(self.tasks) * self.config.repeats)

    def play(self, agent: ContextAgent, budget: float = math.inf, envs: EnvStack | None = None) -> Iterator[np.ndarray]:
        """The returns `[n]` of one episode after another of an agent that learns about its tasks.

        The first is under the z that it has. Environments whose `budget` of steps is spent wait and keep their last
        return; there are no more episodes when it is in all of them. `envs` are those of the evaluation by default.
        """
        envs = self.envs("evaluate") if envs is None else envs
        spent, returns = np.zeros(len(envs), dtype=int), np.zeros(len(envs))

        def observe(observation: Tensor, action: Tensor, step: Step, active: Tensor) -> None:
            agent.observe(observation, action, step.next_observation, step.reward, active)
            np.add(spent, active.numpy(), out=spent)

        while (playing := spent < budget).any():
            returns = np.where(playing, run_episode(envs, agent.act, observe, playing), returns)
            yield returns
            agent.begin_episode()


def evaluate_student(
    policy: ContextPolicy, evaluation: Evaluation, report: Callable[[int], None] = lambda episodes: None
) -> Scores:
    """Run the protocol on all tasks at once; `report` hears how many episodes are done."""
    agent, returns = evaluation.stranger(policy), []
    for result in islice(evaluation.play(agent), evaluation.config.episodes):
        returns.append(result)
        report(len(returns))
    shape = len(evaluation.tasks), evaluation.config.repeats
    table = np.stack(returns, -1).reshape(*shape, len(returns))
    return Scores(table, agent.belief().mean.view(*shape, -1)[:, 0].numpy())


def evaluate_last_trajectory(policy: ContextPolicy, evaluation: Evaluation) -> np.ndarray:
    """Return of the last trajectory per task `[n]`, mean over repeats: PEARL's own protocol.

    Every task is given trajectories until `config.episodes` horizons of steps are spent in it, z as in
    `evaluate_student`; tasks that have spent theirs wait. The random numbers are those of `evaluate_student`: where
    nothing terminates, this is its last episode.
    """
    budget = evaluation.config.episodes * (evaluation.horizon or evaluation.family.horizon)
    *_, last = evaluation.play(evaluation.stranger(policy), budget)
    return last.reshape(-1, evaluation.config.repeats).mean(1)


def trace_behaviour(policy: ContextPolicy, evaluation: Evaluation) -> list[list[np.ndarray]]:
    """What the family shows `[steps, axes]` of every episode, a list of them for each task (first repeat).

    Raises ViewError where the environments do not say what the family shows.
    """
    recorders = [Recorder(env, evaluation.family.view) for env in evaluation.envs("trace").envs]
    for _ in islice(evaluation.play(evaluation.stranger(policy), envs=EnvStack(recorders)), evaluation.config.episodes):
        pass
    return [recorder.shown() for recorder in recorders[:: evaluation.config.repeats]]


def counted_score(returns: np.ndarray, config: EvaluateConfig) -> np.ndarray:
    """Score per task `[n]` from returns `[n, repeats, episodes]`: mean over repeats and counted episodes."""
    return returns[:, :, config.skipped_episodes :].mean((1, 2))


def evaluate_actor(act: Callable[[Tensor], Tensor], envs: EnvStack, episodes: int, seeds: Sequence[int]) -> np.ndarray:
    """Returns `[n, episodes]` of a policy that needs no inference."""
    envs.seed(seeds)
    return np.stack([run_episode(envs, act) for _ in range(episodes)], -1)


def evaluate_teachers(teachers: Teachers, evaluation: Evaluation) -> np.ndarray:
    """Returns `[K, n, episodes]` of every teacher on every task: how far one gets without inferring anything.

    Its random numbers are not those under which a checkpoint was chosen as a task's teacher, so that on the training
    tasks the diagonal is a fresh evaluation of each task's own teacher.
    """
    tasks, number, seed = evaluation.tasks, teachers.tasks, evaluation.seed
    envs = make_envs(evaluation.family, [*tasks] * number, evaluation.horizon)
    generator = generator_of(seed, "references", "teachers")

    def act(observation: Tensor) -> Tensor:
        return teachers.act(observation.view(number, len(tasks), -1), generator).flatten(0, 1)

    seeds = [seed_of(seed, "references", t.split, t.index, k) for k in range(number) for t in tasks]
    return evaluate_actor(act, envs, evaluation.config.reference_episodes, seeds).reshape(number, len(tasks), -1)


def best_of(returns: np.ndarray) -> np.ndarray:
    """Return `[n]` of the best teacher of each task, from `[K, n, episodes]`, at least two: chosen by every other
    episode and scored by the rest, mean of both ways. Chosen by all of them it would be the luckiest one."""
    halves = [returns[..., half::2].mean(-1) for half in range(2)]
    return np.mean([np.take_along_axis(b, a.argmax(0)[None], 0)[0] for a, b in (halves, halves[::-1])], 0)


def evaluate_simple_references(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Mean return `[n]` of uniformly random actions and of zero action."""
    envs = make_envs(evaluation.family, evaluation.tasks, evaluation.horizon)
    seeds = [seed_of(evaluation.seed, "references", t.split, t.index) for t in evaluation.tasks]
    generator = generator_of(evaluation.seed, "references", "random")
    shape = len(envs), evaluation.family.action_size
    policies = {
        "random": lambda observation: torch.rand(shape, generator=generator) * 2 - 1,
        "zero_action": lambda observation: torch.zeros(shape),
    }
    episodes = evaluation.config.reference_episodes
    return {name: evaluate_actor(act, envs, episodes, seeds).mean(-1) for name, act in policies.items()}


def nearest_tasks(distribution: Family, tasks: Sequence[Task], train: Sequence[Task]) -> np.ndarray:
    """Position `[n]` of the training task whose parameters are nearest to each task's."""
    own, known = distribution.features(tasks), distribution.features(train)
    return np.linalg.norm(own[:, None] - known[None], axis=-1).argmin(1)
