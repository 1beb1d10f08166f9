"""Probes of task inference: does the posterior follow the rewards, does it find the own task, does it serve?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mbml.encoders import Belief, Encoder
from mbml.envs import Family, Task
from mbml.evaluate import EvaluateConfig, evaluate_student, make_envs
from mbml.policy import AdaptivePolicy, ContextPolicy
from mbml.rollout import run_episode
from mbml.rows import RowLayout, Rows, gather_rows, sample_indices
from mbml.seeding import generator_of, seed_of


@torch.no_grad()
def own_posteriors(
    policy: ContextPolicy, rows: Rows, layout: RowLayout, size: int, contexts: int, generator: torch.Generator
) -> Belief:
    """Posteriors `[K, contexts, Z]` of random contexts of `size` own transitions, from rows `[K, P, row]`."""
    tasks = rows.shape[0]
    indices = sample_indices(tasks, contexts * size, rows.shape[1], generator)
    context = layout.context(gather_rows(rows, indices))
    return policy.encoder.infer(context.unflatten(1, (contexts, size)))


def known_tasks(policy: ContextPolicy, rows: Rows, layout: RowLayout, size: int, generator: torch.Generator) -> Belief:
    """One posterior `[K, Z]` for each task, from a context of `size` transitions of its own rows."""
    known = own_posteriors(policy, rows, layout, size, 1, generator)
    return Belief(known.mean[:, 0], known.variance[:, 0])


def nearest_known(encoder: Encoder, context: Belief, known: Belief) -> Tensor:
    """Position `[...]` of the known belief `[K, Z]` nearest to each context's `[..., Z]`, by the encoder's divergence
    of the context's from the known one."""
    return encoder.divergence(Belief(*(c.unsqueeze(-2) for c in context)), known).argmin(-1)


@torch.no_grad()
def reward_swap(
    policy: ContextPolicy,
    rows: Rows,
    truth: Tensor,
    layout: RowLayout,
    generator: torch.Generator,
    *,
    size: int = 128,
    repeats: int = 4,
) -> dict[str, float]:
    """Give the encoder task j's transitions with task i's true rewards: does the posterior follow i or j?

    `rows` `[K, P, row]`; `truth` `[K, K, P]`: reward for task i (first axis) of row t of task j. A context counts for
    the training task whose own posterior is nearest. Shares over all ordered pairs and repeats;
    `own_identified` is the share of own contexts that are nearest to their own task.
    """
    tasks = rows.shape[0]
    known = known_tasks(policy, rows, layout, size, generator)
    everyone = torch.arange(tasks)
    follows_reward = follows_source = own = 0.0
    for _ in range(repeats):
        indices = sample_indices(tasks, size, rows.shape[1], generator)
        context = layout.context(gather_rows(rows, indices)).unsqueeze(0).repeat(tasks, 1, 1, 1)
        context[..., -1] = truth[:, everyone.unsqueeze(1), indices]
        nearest = nearest_known(policy.encoder, policy.encoder.infer(context), known)
        off_diagonal = ~torch.eye(tasks, dtype=torch.bool)
        follows_reward += float((nearest == everyone.unsqueeze(1))[off_diagonal].float().mean())
        follows_source += float((nearest == everyone.unsqueeze(0))[off_diagonal].float().mean())
        own += float((nearest.diagonal() == everyone).float().mean())
    reward, source = follows_reward / repeats, follows_source / repeats
    return {
        "follows_reward": reward,
        "follows_state_action": source,
        "other": 1.0 - reward - source,
        "own_identified": own / repeats,
        "pairs": tasks * (tasks - 1),
    }


def identification(
    policy: ContextPolicy,
    known: Belief,
    distribution: Family,
    tasks: Sequence[Task],
    horizon: int | None,
    config: EvaluateConfig,
    seed: int,
) -> list[float]:
    """Share of the K training `tasks` that the posterior names, after each episode of the policy's own rollouts.

    `known` `[K, Z]` are posteriors of the tasks' batches; rollouts and protocol are those of the evaluation.
    """
    truth = torch.arange(len(tasks)).repeat_interleave(config.repeats)
    shares: list[float] = []

    def watch(adaptive: AdaptivePolicy) -> None:
        nearest = nearest_known(policy.encoder, adaptive.belief(), known)
        shares.append(float((nearest == truth).float().mean()))

    evaluate_student(policy, distribution, tasks, horizon, config, seed, watch=watch)
    return shares


@torch.no_grad()
def returns_under(
    policy: ContextPolicy,
    contexts: Tensor,
    distribution: Family,
    tasks: Sequence[Task],
    horizon: int | None,
    repeats: int,
    seed: int,
) -> np.ndarray:
    """Mean return `[n]` in each task when z comes from a given context `[n, size, d_c]` and is never updated.

    With the transitions of another task that carry this task's true rewards, it shows whether a policy that is
    shown the right rewards in the wrong place goes the right way.
    """
    envs = make_envs(distribution, tasks, horizon, repeats)
    envs.seed([seed_of(seed, "contexts", t.split, t.index, r) for t in tasks for r in range(repeats)])
    generator = generator_of(seed, "contexts", "policy")
    belief = policy.encoder.infer(contexts)
    z = Belief(*(b.repeat_interleave(repeats, 0) for b in belief)).sample(generator)
    returns = run_episode(envs, lambda observation: policy.act(observation, z, generator))
    return returns.reshape(len(tasks), repeats).mean(1)
