"""What teachers would earn on the training tasks by fitted Q evaluation, where nothing can be played."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from actors.artefacts import layout_of, load_rows, load_teachers, write_json, write_lines
from actors.stage import Ref, Run, stage
from mbml.fqe import FQEConfig, Logged, fqe_training
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
    """Leaves `references.json`: values `[teacher, task]` as returns are there. What was not compared has the least
    value of all, so that it is never chosen."""
    layout, rows = layout_of(spec.env), load_rows(run.paths(spec.collect), spec.tasks)
    _, teachers = load_teachers(run.paths(spec.teach))
    generator, number = generator_of(spec.seed, "fqe"), len(spec.tasks)
    shown = min(number, spec.config.candidates)
    compared = [place * number // shown for place in range(shown)]
    who = [compared if shown == number else [*compared, task] for task in range(number)]
    logged = [of_teachers(spec.config, layout, rows, task, teachers.select(w), generator) for task, w in enumerate(who)]
    training = fqe_training(spec.config, layout, logged, generator)
    run.train(training)
    means = [values.mean(0) for values in training.learner.values(logged)]
    table = torch.full((number, number), min(float(mean.min()) for mean in means))
    for task, (chosen, mean) in enumerate(zip(who, means, strict=True)):
        table[chosen, task] = mean
    write_json(run.out / "references.json", {"train": {"task": list(spec.tasks), "teachers": table.tolist()}})
    write_lines(run.out / "curves.jsonl", training.curve)
    return {"value": float(table[int(table.mean(1).argmax())].mean())}


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
