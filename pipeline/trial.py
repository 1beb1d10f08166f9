"""One trial of a sweep, as Ray Tune runs it: train one learner, evaluate every snapshot as it comes, probe the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from actors.central_trainer import CentralTrainer
from actors.evaluator import Evaluator
from actors.job import Job
from actors.prober import Prober


@dataclass(frozen=True)
class Work:
    """The jobs of one learner; their artefacts are those that `make pipeline` would make."""

    training: Job
    evaluations: Mapping[int, Job]
    """By step."""
    probes: Job


def run_trial(
    params: Mapping[str, Any], *, work: Mapping[tuple[str, int], Work], store_url: str, cpus: int, gpus: float
) -> None:
    """Make the artefacts that the variant and seed of `params["trial"]` still lack; report every evaluation to Tune.

    A trial that was stopped continues from the learner's checkpoint; one whose artefacts stand reports them at once.
    """
    jobs = work[params["trial"]["variant"], params["trial"]["seed"]]
    trainer, evaluator = CentralTrainer(store_url, cpus, gpus), Evaluator(store_url, cpus)
    pending = sorted(jobs.evaluations)

    def evaluate(at_hand: dict[str, list[Path]] | None = None) -> None:
        step = pending.pop(0)
        metrics = evaluator.run(jobs.evaluations[step], at_hand)
        tune.report({"step": step, **{name: metrics[name] for name in metrics if name.endswith("_return")}})

    def evaluate_until(step: int, folder: Path) -> None:
        while pending and pending[0] <= step:
            evaluate({"distill": [folder]})

    while pending and evaluator.store.complete(*jobs.evaluations[pending[0]].artefact):
        evaluate()
    trainer.on_snapshot = evaluate_until
    trainer.run(jobs.training)
    while pending:  # evaluations of a finished learner that are gone
        evaluate()
    Prober(store_url, cpus).run(jobs.probes)
