"""A sweep: the stages that all variants share once, then one Ray Tune trial per variant and seed, then the report.

And the paper's figures from the sweeps that stand in the store.
"""

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.store import Store
from pipeline.cluster import fit
from pipeline.config import ConfigError, RunConfig
from pipeline.needs import NOTHING, needs_of
from pipeline.outcome import Outcome
from pipeline.plan import Plan, Trained, plan
from pipeline.publish import Log, make_folder
from pipeline.report.drawing import FIGURES, Picture, picture
from pipeline.report.page import Page
from pipeline.report.paper import PAPER
from pipeline.report.warmstart import SECTION
from pipeline.results import Results, gather
from pipeline.run import Place, carry_out, limits_of, title_of
from pipeline.scheduler import execute
from pipeline.search import OBJECTIVES, Point, Suggestions, check_searcher, judged, objective
from pipeline.sweep_config import Sweep, load_sweep, runnable, sweep_defaults

_ROUND = 8  # trials of a round of suggestions
# Ray Tune would write its own pictures of the run to the terminal, and turn Ctrl-C into a normal end.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run_sweep(sweep: Sweep, config: RunConfig, place: Place, out: Path, log: Log) -> int:
    """Run every trial that is missing, then write table, figures and report into `out`; returns the exit code."""
    by_training = sweep.scheduler != "none" or sweep.searcher != "random"
    if by_training and not config.evaluate.train_tasks:
        raise ConfigError("A sweep that stops trials early or searches goes by the training tasks; leave out "
                          "evaluate.train_tasks.")  # fmt: skip
    check_searcher(sweep.searcher)
    return _Sweeping(sweep, config, place, out, log).run(by_training)


class _Sweeping:
    """A sweep that is run; with Optuna its variants become more from round to round."""

    def __init__(self, sweep: Sweep, config: RunConfig, place: Place, out: Path, log: Log) -> None:
        self.sweep, self.config, self.place, self.out, self.log = sweep, config, place, out, log
        self.round = max(1, (sweep.max_concurrent or _ROUND) // len(config.distill_seeds))
        self.search = Suggestions(sweep.search, sweep.search_seed) if sweep.searcher == "optuna" else None
        self.suggest()

    def suggest(self) -> None:
        """Plan what there is to compare, with the next points of the search."""
        if self.search:
            self.asked = self.search.ask(min(self.round, self.sweep.samples - len(self.sweep.drawn)))
            self.sweep = replace(self.sweep, drawn=(*self.sweep.drawn, *self.asked))
        self.jobs = plan(self.config, runnable(self.sweep, self.config, self.log))

    def run(self, by_training: bool) -> int:
        """Make what is missing and write the report."""
        sweep, jobs = self.sweep, self.jobs
        found = f"{len(jobs.variants)} variants, {len(jobs.runs)} trials"
        found = f"up to {sweep.samples} variants that Optuna suggests" if self.search else found
        title = f"sweep {sweep.name}, {title_of(self.config)}, {found}; before them"
        if by_training:
            self.log(f"trials are judged by the {OBJECTIVES[sweep.objective]}; unseen tasks play no part")
        then = {"trials": self.trials, "all_jobs": jobs.jobs.values()}
        shared = jobs.shared()
        return carry_out(title, self.config, shared, self.place, self.out, self.log, self.results, **then)

    def results(self, store: Store, outcome: Outcome | None) -> Results:
        """The results of what was compared."""
        return sweep_results(self.sweep, self.jobs, store, outcome)

    def trials(self, store: Store) -> dict[str, str]:
        """Run the trials, round by round; what went wrong by trial."""
        end = time.monotonic() + (self.sweep.time_budget or math.inf)
        failed = _tune(self.sweep, self.jobs, self.place, self.out, self.log, store, end)
        while self.search and len(self.sweep.drawn) < self.sweep.samples and time.monotonic() < end:
            self.search.tell([self.value(point, store) for point in self.asked])
            self.suggest()
            missing = [job for job in self.jobs.shared() if not store.complete(*job.ref)]
            if missing:
                outcome = execute(missing, store.url, log=self.log, **limits_of(self.place))
                if not outcome.complete:
                    return failed | outcome.failed
            failed |= _tune(self.sweep, self.jobs, self.place, self.out, self.log, store, end)
        return failed

    def value(self, point: Point, store: Store) -> float | None:
        """The objective of a point, the mean over its seeds; None where not all of them ended."""
        runs = [run for run in self.jobs.runs if run.variant.changes == point]
        if not runs or any(run not in finished_runs(self.jobs, store) for run in runs):
            return None
        values = [objective(store, run.evaluations[max(run.evaluations)], self.sweep.objective) for run in runs]
        return sum(values) / len(values)


def finished_runs(jobs: Plan, store: Store) -> list[Trained]:
    """The learners of which everything stands that tables are made from."""
    return [r for r in jobs.runs if all(store.complete(*ref) for ref in r.artefacts() if ref != r.trace)]


def sweep_results(sweep: Sweep, jobs: Plan, store: Store, outcome: Outcome | None = None) -> Results:
    """The results of the finished trials; a trial that was stopped early is left out.

    Raises ConfigError where no trial has finished.
    """
    finished = finished_runs(jobs, store)
    alone = jobs.artefacts.get("metagenrl", [])  # a baseline without trials
    if not finished and not (alone and all(store.complete(*ref) for ref in alone)):
        raise ConfigError(f"No trial of the sweep {sweep.name} is finished in {store.url}.")
    kept = [variant for variant in jobs.variants if variant in [run.variant for run in finished]]
    results = gather(replace(jobs, runs=finished, variants=kept), store, outcome)
    about = {"name": sweep.name, "description": sweep.description, "objective": OBJECTIVES[sweep.objective]}
    if scored := results.methods("score", split="train"):
        values = {name: judged(sweep.objective, results.scores(name, "train")[1][:, -1]).mean() for name in scored}
        about["best"] = max(values, key=lambda name: values[name])
    return replace(results, run=results.run | {"sweep": about})


def _tune(sweep: Sweep, jobs: Plan, place: Place, out: Path, log: Log, store: Store, end: float) -> dict[str, str]:
    """Run the trials, until the monotonic clock shows `end`; what went wrong by trial."""
    os.environ.update(_QUIET)  # read when ray.tune is imported
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from pipeline.trial import Progress, run_trial, trial_name

    asha = sweep.scheduler == "asha"
    # Successive halving compares all trials with each other; without it, those that stand need no trial.
    finished = [] if asha else finished_runs(jobs, store)
    runs = [run for run in jobs.runs if run not in finished]
    log(f"{len(jobs.runs) - len(runs)} trials reused, {len(runs)} to run")
    if not runs:
        return {}
    work = {(run.variant.label, run.seed): run for run in runs}
    # A trial that asks for more than any machine has would wait for ever.
    needs = needs_of(place.needs).get("distill", NOTHING)
    cpus, gpus = fit("a trial", jobs.config.distill_cpus, jobs.config.learner_gpus, log, needs)
    host = (store.url, gpus, place.checkpoint_seconds)
    given = {"work": work, "jobs": jobs.jobs, "host": host, "judged": sweep.objective}
    bundle = {"CPU": cpus, "GPU": gpus, "memory": needs.memory, **dict(needs.resources)}
    labels: dict[str, Any] = {"bundle_label_selector": [dict(needs.labels)]} if needs.labels else {}
    group = tune.PlacementGroupFactory([bundle], **labels)
    trainable = tune.with_resources(tune.with_parameters(run_trial, **given), group)
    steps = max(max(run.evaluations) for run in runs)
    halving = {"time_attr": "step", "metric": "objective", "mode": "max", "max_t": steps, "reduction_factor": 2}
    grace = min(min(run.evaluations) for run in runs)
    scheduler = ASHAScheduler(**halving, grace_period=grace) if asha else None
    budget = None if math.isinf(end) else max(1.0, end - time.monotonic())
    results = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([{"variant": label, "seed": seed} for label, seed in work])},
        tune_config=tune.TuneConfig(
            scheduler=scheduler, reuse_actors=True, max_concurrent_trials=sweep.max_concurrent, time_budget_s=budget
        ),
        run_config=tune.RunConfig(
            name=sweep.name,
            storage_path=str((out / "tune").absolute()),
            verbose=0,
            callbacks=[Progress(log, len(work), steps)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    ).fit()
    if budget and (left := len(jobs.runs) - len(finished_runs(jobs, store))):
        log(f"{left} trials have not ended in {sweep.time_budget:g} s; the same command goes on with them")
    failed = [result for result in results if result.error is not None]
    return {trial_name(result.config or {}): str(result.error).strip().splitlines()[-1] for result in failed}


def draw_figures(config: RunConfig, place: Place, out: Path, log: Log) -> int:
    """Draw every figure whose sweep is finished into `out`; `log` hears of each, and which command makes the others.

    Raises ConfigError where no figure can be drawn.
    """
    store, found, remedies, pictures = Store(place.store), {}, {}, []
    entries = [entry for entry in FIGURES.values() if entry.section == PAPER]
    options = f"ENV={config.env} PRESET={config.preset} SEED={config.seed}"
    for name in dict.fromkeys(entry.sweep for entry in entries):
        sweep, said = load_sweep(name), []
        try:
            swept = sweep_defaults(sweep, config)
            found[name] = sweep_results(sweep, plan(swept, runnable(sweep, swept, said.append)), store)
        except ValueError as error:  # not run here, or not possible in this environment
            said.append(str(error))
        remedies[name] = " ".join([*said, f"It is made by: make sweep SWEEP={name} {options}"])
    if not found:
        missing = [f"{entry.name}: {remedies[entry.sweep]}" for entry in entries]
        raise ConfigError("\n".join([f"No figure of {config.env} can be drawn.", *missing]))
    make_folder(out)
    for entry in entries:
        drawn = picture(entry.name, found[entry.sweep], out) if entry.sweep in found else Picture(entry, "Left out:")
        if drawn.file is None:
            drawn = Picture(entry, f"{drawn.text} {remedies[entry.sweep]}")
        log(f"{entry.name}: {drawn.file or drawn.text}")
        pictures.append(drawn)
    others = ", ".join(entry.name for entry in FIGURES.values() if entry.section == SECTION)
    log(f"{others}: in the report of make warmstart {options}")
    Page(title=f"The paper's figures, {title_of(config)}", pictures=pictures, markdown="figures.md").write(out)
    log(f"Figures: {out / 'figures.md'}")
    return 0
