"""Reward ensembles, and next-state ensembles, of a stack of training tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.artefacts import layout_of, load_rows, write_lines
from actors.stage import Ref, Run, Stack, stage
from mbml.models import EnsembleConfig, EnsembleTraining, Target
from mbml.rows import resident
from mbml.serialise import save_tree


@dataclass(frozen=True)
class Models(Stack):
    """The ensembles of `tasks`, by what they predict."""

    configs: Mapping[Target, EnsembleConfig]
    seed: int
    collect: tuple[Ref, ...]


@stage(version=3)
def models(spec: Models, run: Run) -> dict[str, Any]:
    """Leaves `models.safetensors`, `curves.jsonl` and `history.safetensors`: reward ensembles on the way."""
    rows = resident(load_rows(run.paths(spec.collect), spec.tasks), run.device)
    layout, tasks = layout_of(spec.env), list(spec.tasks)
    training = EnsembleTraining(spec.configs, layout, rows, tasks, spec.seed, run.device, cuda_graphs=spec.cuda_graphs)
    run.train(training)
    networks = {target: ensemble.network.save() for target, ensemble in training.ensembles.items()}
    save_tree(run.out / "models.safetensors", {"tasks": tasks, **networks})
    save_tree(run.out / "history.safetensors", {"tasks": tasks, "history": training.history})
    write_lines(run.out / "curves.jsonl", training.curve)
    return {"loss": training.curve[-1]["loss"]}
