"""Labels of every pooled transition for every task, made once."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from actors.artefacts import (
    layout_of,
    load_history,
    load_models,
    load_rows,
    tables_in_place,
    tasks_of,
    truth_table,
    write_json,
)
from actors.stage import Ref, Run, stage
from mbml import envs
from mbml.models import EnsembleConfig, Target
from mbml.partners import evenly
from mbml.relabel import (
    RelabelConfig,
    RelabelTables,
    cross_task_error,
    diagnostics,
    pools_of,
    relabel_with_truth,
    ring_of,
    shapes_of,
)
from mbml.relabel import relabel as relabelled
from mbml.rows import Lengths, Rows, gather_rows
from mbml.seeding import generator_of
from mbml.serialise import save_tree, tree_in_place

_ERROR_ROWS, _ERROR_TASKS = 128, 16  # transitions of every task for the error over training, and of many tasks some


@dataclass(frozen=True)
class Relabel:
    """The relabelling tables of all `tasks`; true rewards need no `trained` ensembles."""

    env: str
    tasks: tuple[int, ...]
    config: RelabelConfig
    models: Mapping[Target, EnsembleConfig]
    seed: int
    collect: tuple[Ref, ...]
    trained: tuple[Ref, ...] = ()


@stage(version=2)
def relabel(spec: Relabel, run: Run) -> dict[str, Any]:
    """Leaves `tables.safetensors`, and in `diagnostics.json` how good they are."""
    rows, note = load_rows(run.paths(spec.collect), spec.tasks), envs.get(spec.env).reward_note
    generator, layout = generator_of(spec.seed, "relabel"), layout_of(spec.env)
    index, ring = pools_of(rows.lengths, spec.config.pool, generator), ring_of(len(rows), spec.config, spec.seed)
    tasks, learned = tasks_of(spec.env, "train", spec.tasks), spec.config.source == "ensemble"
    file, scratch = run.out / "tables.safetensors", run.out / ".truth.tmp"
    with ExitStack() as files:
        into = true = training = None
        if ring is not None:
            targets: list[Target] = [*spec.models] if learned else ["reward"]
            shapes = shapes_of(Lengths(tuple(map(len, index))), layout, targets, ring)
            into = files.enter_context(tables_in_place(file, index, shapes, ring))
            true = files.enter_context(tree_in_place(scratch, {"reward": shapes["reward"]}))["reward"]
        truth = truth_table(spec.env, tasks, rows, index, ring, true)
        if learned:
            models = load_models(run.paths(spec.trained), spec.models, layout, spec.tasks)
            report = partial(run.report, unit="tasks")
            tables = relabelled(rows, index, layout, models, spec.config, report, ring, into)
            if truth is not None:
                training = _error_over_training(spec, run, rows, tables, truth, generator)
        elif truth is not None:
            tables = relabel_with_truth(index, truth, ring, into)
        else:
            raise ValueError(f"relabel.source is ground_truth, but {spec.env} has no reward function: {note}")
        if ring is None:
            save_tree(file, tables.tensors())
        about = {"threshold": spec.config.reward_threshold, "error_note": note, "training": training}
        write_json(run.out / "diagnostics.json", diagnostics(tables, truth) | about)
        share = float(tables.eligible.count_nonzero()) / tables.eligible.numel()
    scratch.unlink(missing_ok=True)
    return {"eligible_share": share}


def _error_over_training(
    spec: Relabel, run: Run, rows: Rows, tables: RelabelTables, truth: Tensor, generator: Generator
) -> list[dict[str, Any]]:
    """How wrong the reward ensembles were on other tasks' rows while they learned (paper, Fig. 7); of many tasks, of
    some."""
    layout, threshold = layout_of(spec.env), spec.config.reward_threshold
    chosen = tables.pools.sample(_ERROR_ROWS, generator)
    some = None if tables.ring is None else torch.tensor(evenly(len(rows), _ERROR_TASKS))
    if some is None:
        sample = gather_rows(rows, tables.rows_at(chosen))
        labels = truth.reshape(len(truth), -1)[:, tables.pools.positions(chosen)]
    else:
        sample = gather_rows(rows, tables.rows_at(chosen[some], some), some)
        tasks = tasks_of(spec.env, "train", [spec.tasks[i] for i in some])
        labels = torch.as_tensor(truth_table(spec.env, tasks, sample))
    found = []
    for step, model in load_history(run.paths(spec.trained), spec.models["reward"], layout, some):
        error = cross_task_error(model, sample, labels, layout, threshold)
        if some is not None:
            error["task"] = [spec.tasks[i] for i in some]
        found.append({"step": step} | error)
    return found
