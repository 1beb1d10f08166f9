"""What teachers would earn on the training tasks by fitted Q evaluation, where nothing can be played."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from actors.artefacts import layout_of, load_rows, load_teachers, write_json, write_lines
from actors.stage import Ref, Run, stage
from mbml.fqe import FQEConfig, Logged, fqe_training
from mbml.partners import evenly
from mbml.rows import RowLayout, Rows, lengths_of, rows_of
from mbml.seeding import generator_of
from mbml.teachers import Teachers


@dataclass(frozen=True)
class Fqe:
    """Of the teachers of `tasks`, on these."""

    env: str
    tasks: tuple[int, ...]
    config: FQEConfig
    seed: int
    collect: tuple[Ref, ...]
    teach: tuple[Ref, ...]


@stage(version=1)
def fqe(spec: Fqe, run: Run) -> dict[str, Any]:
    """Leaves `references.json`: values `[teacher, task]` as returns are there; where not all are compared, of the
    `candidates`, and every task's `own`."""
    layout, rows = layout_of(spec.env), load_rows(run.paths(spec.collect), spec.tasks)
    teachers = load_teachers(run.paths(spec.teach), spec.tasks)
    generator, number = generator_of(spec.seed, "fqe"), len(spec.tasks)
    compared = evenly(number, spec.config.candidates)
    who = [compared if len(compared) == number else [*compared, task] for task in range(number)]
    logged = [of_teachers(spec.config, layout, rows, task, teachers.select(w), generator) for task, w in enumerate(who)]
    training = fqe_training(spec.config, layout, logged, generator)
    run.train(training)
    means = torch.stack([values.mean(0) for values in training.learner.values(logged)], 1)
    found: dict[str, Any] = {"task": list(spec.tasks), "teachers": means[: len(compared)].tolist()}
    if len(compared) < number:
        found |= {"candidates": [spec.tasks[i] for i in compared], "own": means[-1].tolist()}
    write_json(run.out / "references.json", {"train": found})
    write_lines(run.out / "curves.jsonl", training.curve)
    return {"value": float(means[: len(compared)].mean(1).max())}


def some_rows(config: FQEConfig, rows: Rows, task: int) -> Tensor:
    """Row numbers `[n]` of one task, evenly spread, as many as are looked at."""
    length = lengths_of(rows).each[task]
    number = min(length, config.rows)
    return torch.arange(number) * length // number


def of_teachers(
    config: FQEConfig, layout: RowLayout, rows: Rows, task: int, teachers: Teachers, generator: Generator
) -> Logged:
    """One task's rows, and what teachers do there."""
    own = rows_of(rows, task)[some_rows(config, rows, task)]
    parts = layout.split(own)

    def act(observation: Tensor) -> Tensor:
        return teachers.act(observation.expand(teachers.tasks, -1, -1), generator).transpose(0, 1)

    return Logged(own, act(parts.observation), act(parts.next_observation))
