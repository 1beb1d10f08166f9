"""SAC on a stack of unseen tasks, from scratch or from the multi-task policy."""

from dataclasses import dataclass
from typing import Any

import torch

from actors.artefacts import ArtefactError, env_maker, layout_of, load_rows, snapshot_of, write_json, write_lines
from actors.stage import Ref, Run, Stack, stage
from mbml.collect import CollectConfig, Collection
from mbml.policy import ContextPolicy
from mbml.rows import resident, spread_rows
from mbml.sac import SAC
from mbml.seeding import generator_of, seed_of
from mbml.students import Student
from mbml.warmstart import ImitationConfig, TwoBatchSAC, believed, critics_at, explore, imitate


@dataclass(frozen=True)
class Start:
    """Where a warm start begins."""

    trained: Ref
    """The multi-task learner."""
    snapshot: int
    """Step of its snapshot."""
    initial_steps: int
    """Environment steps per task of the multi-task policy."""
    imitation: ImitationConfig
    replayed: bool
    held_updates: int
    train: tuple[int, ...] = ()
    """The training tasks, where it is imitated on states of their batches."""
    collect: tuple[Ref, ...] = ()


@dataclass(frozen=True)
class WarmStart(Stack):
    """SAC on `tasks` of the test split."""

    horizon: int
    config: CollectConfig
    seed: str
    policy_rate: float | None = None
    """None is plain SAC with one mini-batch."""
    start: Start | None = None
    """None is from random networks."""


@stage(version=1)
def warmstart(spec: WarmStart, run: Run) -> dict[str, Any]:
    """Leaves `curves.jsonl`, whose steps leave out those of the multi-task policy, and `start.json`."""
    layout, make_envs = layout_of(spec.env), env_maker(spec.env, spec.tasks, spec.horizon, "test")
    generator = generator_of(spec.seed, "warmstart", "learner", *spec.tasks, device=run.device)
    sac = (spec.config.sac, layout, len(spec.tasks), generator)
    held = spec.start.held_updates if spec.start else 0
    learner = SAC(*sac) if spec.policy_rate is None else TwoBatchSAC(*sac, spec.policy_rate, held)
    where = (spec.tasks, spec.seed, learner)
    collection = Collection(spec.config, layout, make_envs, *where, cuda_graphs=spec.cuda_graphs)
    if not run.resumes:
        write_json(run.out / "start.json", _warm(spec, spec.start, collection, run) if spec.start else {})
        collection.record()
    run.train(collection)
    write_lines(run.out / "curves.jsonl", collection.curve)
    return collection.latest()


def _warm(spec: WarmStart, start: Start, collection: Collection, run: Run) -> dict[str, Any]:
    """Warm the collection's learner; what the multi-task policy reached, and how well it was imitated."""
    layout, learner, tasks, seed = collection.layout, collection.learner, spec.tasks, spec.seed
    student = ContextPolicy.load(snapshot_of(run.inputs[start.trained], start.snapshot))
    if not isinstance(student, Student) or not isinstance(learner, TwoBatchSAC):
        raise ArtefactError("A warm start needs a distilled policy with a value function, and two mini-batches.")
    envs = env_maker(spec.env, tasks, spec.horizon, "test")(1)
    envs.seed([seed_of(seed, "warmstart", "environment", task) for task in tasks])
    run.report(0, start.initial_steps, "steps of the multi-task policy")
    generator = generator_of(seed, "warmstart", "policy", *tasks)
    explored = explore(student, layout, envs, start.initial_steps, generator)
    generator = generator_of(seed, "warmstart", "imitate", *tasks, device=run.device)
    shown = explored.rows
    if foreign := start.imitation.foreign_states:
        states = spread_rows(load_rows(run.paths(start.collect), start.train), foreign).flatten(0, 1)
        shown = torch.cat([shown, states.expand(len(tasks), *states.shape)], 1)
        shown = believed(student, layout, shown, explored.z, generator_of(seed, "warmstart", "believed", *tasks))
    losses = imitate(learner.policy, layout, resident(shown, run.device), start.imitation, generator)
    if start.replayed:
        collection.give(explored.rows)
    learner.start_from(critics_at(student, explored.z))
    return {"policy_return": explored.returns.tolist(), "imitation_loss": losses.tolist()}
