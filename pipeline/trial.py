"""One trial of a sweep, as Ray Tune runs it: train one learner, evaluate every snapshot as it comes, look
into the last.

And what is said of all of them on the way.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from actors.artefacts import snapshot_of
from actors.host import Host, duration
from actors.stage import Job, Ref
from pipeline.plan import Trained
from pipeline.search import objective

_SILENCE = 15.0  # seconds after which it is said again what is running


def run_trial(
    params: Mapping[str, Any],
    *,
    work: Mapping[tuple[str, int], Trained],
    jobs: Mapping[Ref, Job],
    host: tuple[str, float, float],
    judged: str,
) -> None:
    """Make the artefacts that the variant and seed of `params["trial"]` still lack; report every evaluation to Tune.

    They are those that `make pipeline` would make; `host` is what its `Host` is given, `judged` names the objective. A
    trial that was stopped continues from the learner's checkpoint; one whose artefacts stand reports them at once.
    """
    learner = work[params["trial"]["variant"], params["trial"]["seed"]]
    trainer, player = Host(*host), Host(host[0])
    pending = sorted(learner.evaluations)

    def evaluate(at_hand: Mapping[Ref, Path]) -> None:
        step = pending.pop(0)
        metrics = player.run(jobs[learner.evaluations[step]], at_hand=at_hand)
        found = {name: metrics[name] for name in metrics if name.endswith("_return")}
        if "train_return" in found:
            found["objective"] = objective(player.store, learner.evaluations[step], judged)
        tune.report({"step": step, **found})

    def evaluate_snapshots(training: Path) -> None:
        while pending and snapshot_of(training, pending[0]).exists():
            evaluate({learner.trained: training})

    while pending and trainer.store.complete(*learner.evaluations[pending[0]]):
        evaluate({})
    trainer.run(jobs[learner.trained], watch=evaluate_snapshots)
    while pending:  # evaluations of a finished learner that are gone
        evaluate({})
    player.run(jobs[learner.probes])
    if learner.trace:
        player.run(jobs[learner.trace])


def trial_name(params: Mapping[str, Any]) -> str:
    """The variant and seed of a trial, for people."""
    return f"{params['trial']['variant']} seed {params['trial']['seed']}"


class Progress(tune.Callback):
    """Says one line per evaluation to `log`: which trial, its returns, the share of all steps, time left."""

    def __init__(self, log: Callable[[str], None], trials: int, steps: int) -> None:
        self.log, self.trials, self.steps = log, trials, steps
        self.done: dict[str, int] = {}
        self.ended = 0
        self.started = self.spoke = time.monotonic()

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        """Says what runs where nothing has been said for a while."""
        if time.monotonic() - self.spoke >= _SILENCE:
            running = ", ".join(trial_name(trial.config) for trial in trials if trial.status == "RUNNING")
            self._say(f"running  {running or 'no trial yet: waiting for processors'}")

    def on_trial_result(self, iteration: int, trials: Sequence[Any], trial: Any, result: dict, **info: Any) -> None:
        """An evaluation."""
        self.done[trial.trial_id] = result["step"]
        returns = "  ".join(f"{n}={result[n]:.4g}" for n in ("test_return", "train_return") if n in result)
        self._say(f"running  {trial_name(trial.config)}   step {result['step']}/{self.steps}  {returns}")

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """The end of a trial; one stopped early has nothing left to do."""
        self.ended += 1
        self.done[trial.trial_id] = self.steps
        self._say(f"finished {trial_name(trial.config)}")

    def _say(self, what: str) -> None:
        self.spoke = time.monotonic()
        share = sum(self.done.values()) / (self.trials * self.steps)
        elapsed = self.spoke - self.started
        left = f", about {duration(elapsed * (1 - share) / share)} left" if share else ""
        self.log(f"{what}   [{self.ended}/{self.trials} trials, {100 * share:.0f}%, {duration(elapsed)}{left}]")
