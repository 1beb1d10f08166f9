"""A sweep: the stages that all variants share once, then one Ray Tune trial per variant and seed, then the report.

And the paper's figures from the sweeps that stand in the store.
"""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from actors.store import Store
from pipeline.cluster import fit
from pipeline.config import ConfigError, RunConfig
from pipeline.outcome import Outcome
from pipeline.plan import Plan, Trained, plan
from pipeline.publish import Log, make_folder
from pipeline.report.drawing import FIGURES, Picture, picture
from pipeline.report.page import Page
from pipeline.report.paper import PAPER
from pipeline.report.warmstart import SECTION
from pipeline.results import Results, gather
from pipeline.run import Place, carry_out, title_of
from pipeline.sweep_config import Sweep, load_sweep, runnable, sweep_defaults

# Ray Tune would write its own pictures of the run to the terminal, and turn Ctrl-C into a normal end.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run_sweep(sweep: Sweep, config: RunConfig, place: Place, out: Path, log: Log) -> int:
    """Run every trial that is missing, then write table, figures and report into `out`; returns the exit code."""
    jobs = plan(config, runnable(sweep, config, log))
    compared = f"{len(jobs.variants)} variants, {len(jobs.runs)} trials"
    title = f"sweep {sweep.name}, {title_of(config)}, {compared}; before them"

    gathered, trials = partial(sweep_results, sweep, jobs), partial(_tune, sweep, jobs, place, out, log)
    then = {"trials": trials, "all_jobs": jobs.jobs.values()}
    return carry_out(title, config, jobs.shared(), place, out, log, gathered, **then)


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
    about = {"sweep": {"name": sweep.name, "description": sweep.description}}
    return replace(results, run=results.run | about)


def _tune(sweep: Sweep, jobs: Plan, place: Place, out: Path, log: Log, store: Store) -> dict[str, str]:
    """Run the trials; what went wrong by trial."""
    os.environ.update(_QUIET)  # read when ray.tune is imported
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    from pipeline.trial import Progress, run_trial, trial_name

    # Successive halving compares all trials with each other; without it, those that stand need no trial.
    finished = [] if sweep.asha else finished_runs(jobs, store)
    runs = [run for run in jobs.runs if run not in finished]
    log(f"{len(jobs.runs) - len(runs)} trials reused, {len(runs)} to run")
    if not runs:
        return {}
    work = {(run.variant.label, run.seed): run for run in runs}
    # A trial that asks for more than any machine has would wait for ever.
    cpus, gpus = fit("a trial", jobs.config.distill_cpus, jobs.config.learner_gpus, log)
    host = (store.url, int(cpus), gpus, place.checkpoint_seconds)
    given = {"work": work, "jobs": jobs.jobs, "host": host}
    trainable = tune.with_resources(tune.with_parameters(run_trial, **given), {"cpu": cpus, "gpu": gpus})
    steps = max(max(run.evaluations) for run in runs)
    judged = {"time_attr": "step", "metric": "train_return", "mode": "max", "max_t": steps, "reduction_factor": 2}
    grace = min(min(run.evaluations) for run in runs)
    scheduler = ASHAScheduler(**judged, grace_period=grace) if sweep.asha else None
    results = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([{"variant": label, "seed": seed} for label, seed in work])},
        tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True),
        run_config=tune.RunConfig(
            name=sweep.name,
            storage_path=str((out / "tune").absolute()),
            verbose=0,
            callbacks=[Progress(log, len(work), steps)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    ).fit()
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
