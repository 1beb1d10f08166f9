"""What logs can say of a multi-task policy: of training tasks by episodes that were held out, of tasks held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from actors.artefacts import layout_of, load_models, load_returns, load_rows, load_teachers, snapshot_of, write_json
from actors.stage import Ref, Run, stage
from actors.stages.fqe import some_rows
from mbml.assess import AssessConfig, action_difference, by_blocks, identified, next_actions, under
from mbml.data import Dataset
from mbml.evidence import blind_teacher
from mbml.fqe import FQEConfig, Logged, fqe_training
from mbml.models import EnsembleConfig, Target
from mbml.partners import evenly
from mbml.policy import ContextPolicy
from mbml.probes import known_tasks, reward_swap
from mbml.rows import MappedRows, rows_of, spread_rows
from mbml.seeding import generator_of
from mbml.teachers import Teachers
from mbml.training import run as train

_ROWS = 2_000
_CONTEXT_SIZE = 128


@dataclass(frozen=True)
class Assess:
    """The last snapshot of the multi-task learner `trained`."""

    env: str
    train: tuple[int, ...]
    held: tuple[int, ...]
    """Places of the held-out tasks in the dataset."""
    config: AssessConfig
    fqe: FQEConfig
    seed: int
    trained: Ref
    step: int
    collect: tuple[Ref, ...]
    teach: tuple[Ref, ...]
    own: tuple[Ref, ...]
    """Teachers of the held-out tasks."""
    references: Ref
    """Which teacher is the blind one."""
    models: Mapping[Target, EnsembleConfig]
    ensembles: tuple[Ref, ...]


@stage(version=1)
def assess(spec: Assess, run: Run) -> dict[str, Any]:
    """Leaves `assessment.json`."""
    policy = ContextPolicy.load(snapshot_of(run.inputs[spec.trained], spec.step))
    (collected,), generator = run.paths(spec.collect), generator_of(spec.seed, "assess")
    teachers, own = load_teachers(run.paths(spec.teach), spec.train), load_teachers(run.paths(spec.own), spec.held)
    blind = blind_teacher(load_returns(run.inputs[spec.references], spec.train))
    rows = load_rows([collected], spec.train)
    known = known_tasks(policy, spread_rows(rows, _ROWS), _CONTEXT_SIZE, generator)
    held, sizes = _held(collected, spec.train), spec.config.transitions
    shares = [identified(policy, known, held, size, spec.config.contexts, generator) for size in sizes]
    run.report(1, 4, "questions")
    swap = _swap(spec, run, policy, generator)
    run.report(2, 4, "questions")
    agreement = {
        "train": _agreement(policy, rows, held, teachers, teachers.select([blind]), sizes[-1], generator),
        "test": _agreement(
            policy, load_rows([collected], spec.held), None, own, teachers.select([blind]), sizes[-1], generator
        ),
    }
    run.report(3, 4, "questions")
    found = {
        "blind": spec.train[blind],
        "identified": {str(n): s for n, s in zip(sizes, shares, strict=True) if np.isfinite(s)},
        "reward_swap": swap,
        "agreement": agreement,
        **_values(spec, collected, policy, teachers.select([blind]), own, generator),
    }
    write_json(run.out / "assessment.json", found)
    return {"difference": float(np.mean(agreement["test"]["adapted"]))}


def _held(collected: Path, tasks: Sequence[int]) -> list[Tensor]:
    """Rows of the training tasks' episodes that nothing learned from; none of a task that is too short."""
    dataset = Dataset.open(collected / "held")
    there = [task for task in tasks if task in dataset.task_indices]
    rows = MappedRows([dataset.shards(task) for task in there]) if there else None
    return [rows_of(rows, there.index(t)) if rows is not None and t in there else torch.empty(0, 1) for t in tasks]


def _swap(spec: Assess, run: Run, policy: ContextPolicy, generator: Generator) -> dict[str, float] | None:
    """The reward-swap test with rewards of the learned models, on some of the training tasks."""
    if not spec.ensembles:
        return None
    layout = layout_of(spec.env)
    chosen = [spec.train[i] for i in evenly(len(spec.train), spec.config.swapped_tasks)]
    model = load_models(run.paths(spec.ensembles), {"reward": spec.models["reward"]}, layout, chosen)["reward"]
    rows = spread_rows(load_rows(run.paths(spec.collect), chosen), 512)
    labels = [model.predict(layout.pair(own).expand(model.tasks, -1, -1)).mean(1)[..., 0] for own in rows]
    return reward_swap(policy, rows, torch.stack(labels, 1), generator)


def _agreement(
    policy: ContextPolicy,
    rows: MappedRows,
    judged: Sequence[Tensor] | None,
    own: Teachers,
    blind: Teachers,
    count: int,
    generator: Generator,
) -> dict[str, list[float]]:
    """How far actions are from those of each task's own teacher, after `count` transitions of the task's log: on the
    rows that are `judged` where there are any, else on the rest of the log."""
    found: dict[str, list[float]] = {"adapted": [], "untold": [], "blind_teacher": []}
    for task in range(len(rows)):
        log = rows_of(rows, task)
        rest = log[count:] if len(log) > count else log
        seen = judged[task] if judged is not None and len(judged[task]) else rest
        observation = policy.layout.split(spread_rows(seen.unsqueeze(0), _ROWS)[0]).observation
        wanted = own.select([task]).act(observation.unsqueeze(0), generator)[0]
        acts = {
            "adapted": under(policy, policy.layout.context(log[:count]), generator)(observation),
            "untold": under(policy, None, generator)(observation),
            "blind_teacher": blind.act(observation.unsqueeze(0), generator)[0],
        }
        for name, action in acts.items():
            found[name].append(action_difference(action, wanted))
    return found


def _values(
    spec: Assess, collected: Path, policy: ContextPolicy, blind: Teachers, own: Teachers, generator: Generator
) -> dict[str, Any]:
    """Fitted Q evaluation on the held-out tasks, by blocks of episodes `[task][block]`, in the log's unit of reward,
    and what was logged there per step."""
    dataset, layout = Dataset.open(collected / "dataset"), policy.layout
    rows, count = load_rows([collected], spec.held), spec.config.transitions[-1]
    names = ("adapted", "untold", "blind_teacher", "own_teacher", "behaviour")
    logged, episodes, earned = [], [], []
    for task, place in enumerate(spec.held):
        batch, index = dataset.task(place), some_rows(spec.fqe, rows, task)
        log = rows_of(rows, task)
        kept, following = log[index], torch.from_numpy(next_actions(batch))[index]
        acts = [
            under(policy, layout.context(log[:count]), generator),
            under(policy, None, generator),
            *(lambda o, t=t: t.act(o.unsqueeze(0), generator)[0] for t in (blind, own.select([task]))),
        ]
        parts = layout.split(kept)
        now = [*(act(parts.observation) for act in acts), parts.action]
        then = [*(act(parts.next_observation) for act in acts), following]
        logged.append(Logged(kept, torch.stack(now, 1), torch.stack(then, 1)))
        episodes.append(batch.episode[index.numpy()])
        earned.append(float(batch.reward.astype(np.float64).mean()))
    training = fqe_training(spec.fqe, layout, logged, generator_of(spec.seed, "assess", "fqe"))
    train(training)
    assert dataset.scaling is not None
    offset, scale = (dataset.scaling.meta["reward"][name] for name in ("offset", "scale"))
    blocks = [
        by_blocks(value.double().numpy() * scale + offset, episode)
        for value, episode in zip(training.learner.values(logged), episodes, strict=True)
    ]
    return {
        "value": {name: [block[:, i].tolist() for block in blocks] for i, name in enumerate(names)},
        "logged_reward": [one * scale + offset for one in earned],
        "loss": [point["fqe_loss"] for point in training.curve],
    }
