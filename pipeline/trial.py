"""One trial of a sweep, as Ray Tune runs it: train one learner, evaluate every snapshot as it comes, probe the last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from actors.artefacts import snapshot_of
from actors.host import Host
from actors.stage import Job, Ref
from pipeline.plan import Trained


def run_trial(
    params: Mapping[str, Any],
    *,
    work: Mapping[tuple[str, int], Trained],
    jobs: Mapping[Ref, Job],
    store_url: str,
    cpus: int,
    gpus: float,
) -> None:
    """Make the artefacts that the variant and seed of `params["trial"]` still lack; report every evaluation to Tune.

    They are those that `make pipeline` would make. A trial that was stopped continues from the learner's checkpoint;
    one whose artefacts stand reports them at once.
    """
    learner = work[params["trial"]["variant"], params["trial"]["seed"]]
    host, player = Host(store_url, cpus, gpus), Host(store_url, cpus)
    pending = sorted(learner.evaluations)

    def evaluate(at_hand: Mapping[Ref, Path]) -> None:
        step = pending.pop(0)
        metrics = player.run(jobs[learner.evaluations[step]], at_hand=at_hand)
        tune.report({"step": step, **{name: metrics[name] for name in metrics if name.endswith("_return")}})

    def evaluate_snapshots(training: Path) -> None:
        while pending and snapshot_of(training, pending[0]).exists():
            evaluate({learner.trained: training})

    while pending and host.store.complete(*learner.evaluations[pending[0]]):
        evaluate({})
    host.run(jobs[learner.trained], watch=evaluate_snapshots)
    while pending:  # evaluations of a finished learner that are gone
        evaluate({})
    player.run(jobs[learner.probes])
