"""Labels of every pooled transition for every task, made once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Generator, Tensor

from actors.artefacts import layout_of, load_ensemble, load_history, load_rows, tasks_of, truth_table, write_json
from actors.stage import Ref, Run, stage
from mbml import envs
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.relabel import RelabelConfig, RelabelTables, cross_task_error, diagnostics, pools_of, relabel_with_truth
from mbml.relabel import relabel as relabelled
from mbml.rows import Rows, gather_rows
from mbml.seeding import generator_of
from mbml.serialise import save_tree

_ERROR_ROWS = 128  # transitions of every task for the error over training


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
    generator = generator_of(spec.seed, "relabel")
    index = pools_of(rows.lengths, spec.config.pool, generator)
    truth = truth_table(spec.env, tasks_of(spec.env, "train", spec.tasks), rows, index)
    training = None
    if spec.config.source == "ensemble":
        layout, trained = layout_of(spec.env), run.paths(spec.trained)
        models: dict[Target, Ensemble] = {t: load_ensemble(trained, c, layout, t) for t, c in spec.models.items()}
        tables = relabelled(rows, index, layout, models, spec.config, partial(run.report, unit="tasks"))
        if truth is not None:
            training = _error_over_training(spec, run, rows, tables, truth, generator)
    elif truth is not None:
        tables = relabel_with_truth(index, truth)
    else:
        raise ValueError(f"relabel.source is ground_truth, but {spec.env} has no reward function: {note}")
    save_tree(run.out / "tables.safetensors", tables.tensors())
    about = {"threshold": spec.config.reward_threshold, "error_note": note, "training": training}
    write_json(run.out / "diagnostics.json", diagnostics(tables, truth) | about)
    return {"eligible_share": float(tables.eligible.float().mean())}


def _error_over_training(
    spec: Relabel, run: Run, rows: Rows, tables: RelabelTables, truth: Tensor, generator: Generator
) -> list[dict[str, Any]]:
    """How wrong the reward ensembles were on other tasks' rows while they learned (paper, Fig. 7)."""
    layout, threshold = layout_of(spec.env), spec.config.reward_threshold
    chosen = tables.pools.sample(_ERROR_ROWS, generator)
    sample = gather_rows(rows, tables.rows_at(chosen))
    labels = truth.reshape(len(truth), -1)[:, tables.pools.positions(chosen)]
    return [
        {"step": step} | cross_task_error(model, sample, labels, layout, threshold)
        for step, model in load_history(run.paths(spec.trained), spec.models["reward"], layout)
    ]
