"""A look into a multi-task policy's task inference: what a score alone does not explain."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from actors.artefacts import load_rows, load_teachers, snapshot_of, tasks_of, truth_table, write_json
from actors.stage import Ref, Run, stage
from actors.stages.evaluate import Protocol
from mbml import envs
from mbml.evaluate import evaluate_last_trajectory
from mbml.partners import evenly
from mbml.policy import ContextPolicy
from mbml.probes import identification, known_tasks, own_posteriors, returns_under, reward_swap, swapped_returns
from mbml.rows import sample_rows, spread_rows
from mbml.seeding import generator_of
from mbml.students import GenerativeStudent

_PICTURE_CONTEXTS = 8
_CONTEXT_SIZE = 128
_ROWS = 10_000
_SWAPPED = 32  # training tasks at most in the reward-swap test


@dataclass(frozen=True)
class Probe(Protocol):
    """The last snapshot of the multi-task learner `trained`, and the batches that it learned from."""

    trained: Ref
    step: int
    last_trajectory: bool
    """Also score the unseen tasks by PEARL's own protocol."""
    collect: tuple[Ref, ...]
    teach: tuple[Ref, ...] = ()
    """Whose networks a distilled policy's are replaced by."""


@stage(version=2)  # 2: what the policy does when it is told the task, and with networks of its teachers
def probe(spec: Probe, run: Run) -> dict[str, Any]:
    """Leaves `probes.json`, with every probe that the environment allows."""
    rows = spread_rows(load_rows(run.paths(spec.collect), spec.train), _ROWS)
    policy = ContextPolicy.load(snapshot_of(run.inputs[spec.trained], spec.step))
    generator = generator_of(spec.seed, "probes")
    posteriors = own_posteriors(policy, rows, _CONTEXT_SIZE, _PICTURE_CONTEXTS, generator)
    train, unseen = tasks_of(spec.env, "train", spec.train), tasks_of(spec.env, "test", spec.test)
    some = evenly(len(train), _SWAPPED)  # the test is about pairs
    truth = truth_table(spec.env, [train[i] for i in some], rows[some])
    swap = None if truth is None else reward_swap(policy, rows[some], truth, generator)
    known = known_tasks(policy, rows, _CONTEXT_SIZE, generator)
    last = evaluate_last_trajectory(policy, spec.of(unseen)).tolist() if spec.last_trajectory else None
    found = {
        "train": list(spec.train),
        "posterior_mean": posteriors.mean.tolist(),
        "reward_swap": swap,
        "identification": identification(policy, known, spec.of(train)),
        "foreign_contexts": _foreign_contexts(spec, policy, rows, generator),
        "last_trajectory": last,
        **_told(spec, policy, rows, run),
    }
    write_json(run.out / "probes.json", found)
    return swap or {}


def _told(spec: Probe, policy: ContextPolicy, rows: Tensor, run: Run) -> dict[str, Any]:
    """Return on each training task with z from its own batch, and then with single networks of its teacher."""
    played = spec.of(tasks_of(spec.env, "train", spec.train))
    contexts = policy.layout.context(sample_rows(rows, _CONTEXT_SIZE, generator_of(spec.seed, "probes", "told")))
    swapped = None
    if spec.teach and isinstance(policy, GenerativeStudent):
        teachers = load_teachers(run.paths(spec.teach), spec.train)
        swapped = {n: found.tolist() for n, found in swapped_returns(policy, teachers, contexts, played).items()}
    return {"told": returns_under(policy, contexts, played).tolist(), "swapped": swapped}


def _foreign_contexts(
    spec: Probe, policy: ContextPolicy, rows: Tensor, generator: Generator
) -> dict[str, list[float]] | None:
    """Return on each unseen task with z from its nearest and from its farthest training task's transitions, which
    carry the unseen task's true rewards; None where those cannot be computed."""
    family = envs.get(spec.env)
    unseen = tasks_of(spec.env, "test", spec.test)
    sample = sample_rows(rows, _CONTEXT_SIZE, generator)
    truth = truth_table(spec.env, unseen, sample)  # [n, K, size]
    if truth is None:
        return None
    own, known = (family.features(tasks) for tasks in (unseen, tasks_of(spec.env, "train", spec.train)))
    distance = torch.from_numpy(((own[:, None] - known[None]) ** 2).sum(-1))
    found = {}
    for name, source in (("nearest", distance.argmin(1)), ("farthest", distance.argmax(1))):
        contexts = policy.layout.context(sample[source]).clone()
        contexts[..., -1] = truth[torch.arange(len(unseen)), source]
        found[name] = returns_under(policy, contexts, spec.of(unseen)).tolist()
    return found
