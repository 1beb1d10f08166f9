"""One trial of a sweep, as Ray Tune runs it: train one learner, evaluate every snapshot as it comes, probe the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from actors.artefacts import snapshot_of
from actors.host import Host
from actors.stage import Job, Ref


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
    host = Host(store_url, cpus, gpus)
    pending = sorted(jobs.evaluations)

    def evaluate(at_hand: Mapping[Ref, Path] | None = None) -> None:
        step = pending.pop(0)
        metrics = Host(store_url, cpus).run(jobs.evaluations[step], at_hand=at_hand)
        tune.report({"step": step, **{name: metrics[name] for name in metrics if name.endswith("_return")}})

    def evaluate_snapshots(training: Path) -> None:
        while pending and snapshot_of(training, pending[0]).exists():
            evaluate({jobs.training.ref: training})

    while pending and host.store.complete(*jobs.evaluations[pending[0]].ref):
        evaluate()
    host.run(jobs.training, watch=evaluate_snapshots)
    while pending:  # evaluations of a finished learner that are gone
        evaluate()
    Host(store_url, cpus).run(jobs.probes)
