"""Probes of task inference: does the posterior follow the rewards, does it find the own task, does it serve?"""

from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mbml.encoders import Belief, Encoder
from mbml.evaluate import Evaluation
from mbml.policy import ContextPolicy
from mbml.rollout import run_episode
from mbml.rows import Rows, gather_rows, lengths_of, sample_rows
from mbml.seeding import generator_of
from mbml.students import GenerativeStudent
from mbml.teachers import Teachers
from mbml.teachers.bcq import best_actions, clamped_latents, perturbed


@torch.no_grad()
def own_posteriors(policy: ContextPolicy, rows: Rows, size: int, contexts: int, generator: torch.Generator) -> Belief:
    """Posteriors `[K, contexts, Z]` of random contexts of `size` own transitions, from rows `[K, P, row]`."""
    context = policy.layout.context(sample_rows(rows, contexts * size, generator))
    return policy.encoder.infer(context.unflatten(1, (contexts, size)))


def known_tasks(policy: ContextPolicy, rows: Rows, size: int, generator: torch.Generator) -> Belief:
    """One posterior `[K, Z]` for each task, from a context of `size` transitions of its own rows."""
    return Belief(*(part[:, 0] for part in own_posteriors(policy, rows, size, 1, generator)))


def nearest_known(encoder: Encoder, context: Belief, known: Belief) -> Tensor:
    """Position `[...]` of the known belief `[K, Z]` nearest to each context's `[..., Z]`, by the encoder's divergence
    of the context's from the known one."""
    return encoder.divergence(Belief(*(c.unsqueeze(-2) for c in context)), known).argmin(-1)


@torch.no_grad()
def reward_swap(
    policy: ContextPolicy, rows: Rows, truth: Tensor, generator: torch.Generator, size: int = 128, repeats: int = 4
) -> dict[str, float]:
    """Give the encoder task j's transitions with task i's true rewards: does the posterior follow i or j?

    `rows` `[K, P, row]`; `truth` `[K, K, P]`: reward for task i (first axis) of row t of task j. A context counts for
    the training task whose own posterior is nearest. Shares over all ordered pairs and repeats;
    `own_identified` is the share of own contexts that are nearest to their own task.
    """
    tasks = len(rows)
    known, everyone = known_tasks(policy, rows, size, generator), torch.arange(tasks)
    contexts = []
    for _ in range(repeats):
        indices = lengths_of(rows).sample(size, generator)
        context = policy.layout.context(gather_rows(rows, indices)).repeat(tasks, 1, 1, 1)
        context[..., -1] = truth[:, everyone.unsqueeze(1), indices]
        contexts.append(nearest_known(policy.encoder, policy.encoder.infer(context), known))
    nearest, foreign = torch.stack(contexts), ~torch.eye(tasks, dtype=torch.bool)  # [repeats, K, K]
    reward, source = (
        (nearest == wanted)[:, foreign].double().mean().item() for wanted in (everyone.unsqueeze(1), everyone)
    )
    return {
        "follows_reward": reward,
        "follows_state_action": source,
        "other": 1.0 - reward - source,
        "own_identified": (nearest.diagonal(dim1=1, dim2=2) == everyone).double().mean().item(),
        "pairs": tasks * (tasks - 1),
    }


def identification(policy: ContextPolicy, known: Belief, evaluation: Evaluation) -> list[float]:
    """Share of the K training tasks that the posterior names, after each episode of the policy's own rollouts.

    `known` `[K, Z]` are posteriors of the tasks' batches; rollouts and protocol are those of the `evaluation`.
    """
    config = evaluation.config
    truth = torch.arange(len(evaluation.tasks)).repeat_interleave(config.repeats)
    agent, shares = evaluation.stranger(policy), []
    for _ in islice(evaluation.play(agent), config.episodes):
        nearest = nearest_known(policy.encoder, agent.belief(), known)
        shares.append(float((nearest == truth).float().mean()))
    return shares


@torch.no_grad()
def returns_under(policy: ContextPolicy, contexts: Tensor, evaluation: Evaluation) -> np.ndarray:
    """Mean return `[n]` in each task when z comes from a given context `[n, size, d_c]` and is never updated.

    With the transitions of another task that carry this task's true rewards, it shows whether a policy that is
    shown the right rewards in the wrong place goes the right way. One episode of each of `config.repeats`.
    """
    repeats, generator = evaluation.config.repeats, generator_of(evaluation.seed, "contexts", "policy")
    belief = policy.encoder.infer(contexts)
    z = Belief(*(part.repeat_interleave(repeats, 0) for part in belief)).sample(generator)
    returns = run_episode(evaluation.envs("contexts"), lambda observation: policy.act(observation, z, generator))
    return returns.reshape(-1, repeats).mean(1)


SWAPS = {
    "none": frozenset(),
    "generator": frozenset({"generator"}),
    "perturbation": frozenset({"perturbation"}),
    "value": frozenset({"value"}),
    "all": frozenset({"generator", "perturbation", "value"}),
}
"""Networks of a generative student that are replaced by the teacher's, by the name of the probe."""


@torch.no_grad()
def swapped_returns(
    student: GenerativeStudent, teachers: Teachers, contexts: Tensor, evaluation: Evaluation
) -> dict[str, np.ndarray]:
    """Mean return `[K]` on each training task with single networks of the student replaced by the own teacher's.

    z comes from `contexts` `[K, size, d_c]` and is never updated: so it shows which network loses what the teacher had.
    """
    repeats, candidates = evaluation.config.repeats, student.config.acting_candidates
    mean, _ = student.encoder.infer(contexts)
    told = mean.repeat_interleave(repeats * candidates, 0).unflatten(0, (len(mean), -1))

    def act(replaced: frozenset[str], generator: torch.Generator, seen: Tensor) -> Tensor:
        observation = seen.unflatten(0, (len(mean), -1)).repeat_interleave(candidates, 1)
        latent = clamped_latents((*observation.shape[:2], student.latent_size), generator)
        if "generator" in replaced:
            action = teachers.generate(observation, latent)
        else:
            action = student.generate(observation, latent, told)
        if "perturbation" in replaced:
            action = perturbed(action, teachers.perturb(observation, action))
        else:
            action = perturbed(action, student.perturb(observation, action, told))
        if "value" in replaced:
            value = teachers.value(torch.cat([observation, action], -1))
        else:
            value = student.value(observation, action, told)
        return best_actions(action, value, candidates).flatten(0, 1)

    found = {}
    for name, replaced in SWAPS.items():
        generator = generator_of(evaluation.seed, "swaps", "policy")
        returns = run_episode(evaluation.envs("swaps"), partial(act, replaced, generator))
        found[name] = returns.reshape(-1, repeats).mean(1)
    return found
