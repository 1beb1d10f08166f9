"""One multi-task policy from all tasks' rows: MBML's or a rival's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from actors.artefacts import (
    layout_of,
    load_models,
    load_pooled_returns,
    load_returns,
    load_rows,
    load_tables,
    load_teachers,
    snapshot_of,
    write_lines,
)
from actors.stage import Ref, Run, stage
from mbml.methods import METHODS
from mbml.models import EnsembleConfig, Target
from mbml.rows import resident
from mbml.seeding import generator_of
from mbml.settings import later
from mbml.teachers.various import Various
from mbml.training import Training

_LOG_POINTS = 200


@dataclass(frozen=True)
class Distill:
    """The multi-task learner of a configuration, and what of `teach`, `relabel` and `references` it needs."""

    env: str
    tasks: tuple[int, ...]
    learner: str
    """Name of the learner's configuration."""
    config: Any
    seed: str
    collect: tuple[Ref, ...]
    teach: tuple[Ref, ...] = ()
    relabel: Ref | None = None
    references: Ref | None = None
    besides: tuple[tuple[Ref, tuple[Ref, ...]], ...] = later(())
    """Returns and teachers of other kinds, of the same tasks."""
    pooled: tuple[Ref, Ref] | None = later(None)
    """Returns and artefact of the teacher of all tasks together."""
    models: Mapping[Target, EnsembleConfig] | None = later(None)
    ensembles: tuple[Ref, ...] = later(())
    threads: int = 1
    """Sums are added up in another order with more."""
    device: str = "cpu"


@stage(version=2)  # 2: the mean encoder normalises its embedding before the tanh
def distill(spec: Distill, run: Run) -> dict[str, Any]:
    """Leaves `snapshots/step-NNNNNNN.safetensors` and `losses.jsonl`."""
    rows = resident(load_rows(run.paths(spec.collect), spec.tasks), run.device)
    needed: dict[str, Any] = {}
    if spec.teach:
        stacks = [spec.teach, *(teach for _, teach in spec.besides)]
        kinds = [load_teachers(run.paths(teach), spec.tasks) for teach in stacks]
        if spec.pooled:
            kinds.append(load_teachers(run.paths(spec.pooled[1:]), None))
        needed["teachers"] = (Various(kinds) if len(kinds) > 1 else kinds[0]).to(run.device)
    if spec.relabel is not None:
        needed["tables"] = load_tables(run.inputs[spec.relabel]).to(run.device)
    if spec.models is not None:
        needed["models"] = load_models(run.paths(spec.ensembles), spec.models, layout_of(spec.env), spec.tasks)
        for model in needed["models"].values():
            model.network.to(run.device)
    if spec.references is not None:
        played = run.paths([spec.references, *(returns for returns, _ in spec.besides)])
        returns = [load_returns(folder, spec.tasks) for folder in played]
        if spec.pooled:
            returns.append(load_pooled_returns(run.inputs[spec.pooled[0]], spec.tasks))
        needed["returns"] = torch.cat(returns).to(run.device, torch.float32)
    # Batches and contexts have a generator each.
    generators = [generator_of(spec.seed, "distill", purpose, device=run.device) for purpose in ("batches", "contexts")]
    make = next(method.make for method in METHODS.values() if method.learner == spec.learner)
    learner = make(spec.config, layout_of(spec.env), rows, *generators, **needed)

    def snapshot(step: int) -> None:
        learner.policy.save(snapshot_of(run.out, step), step=step)

    steps, every = spec.config.steps, spec.config.snapshot_every
    log_every = max(1, steps // _LOG_POINTS)
    training = Training(learner, tuple, steps, log_every, snapshot_every=every, on_snapshot=snapshot)
    run.train(training)
    write_lines(run.out / "losses.jsonl", training.curve)
    return {name: value for name, value in training.curve[-1].items() if name != "step"}
