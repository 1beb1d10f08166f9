"""What all commands that compute have in common, and the run and the warm start of one environment."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from actors.host import duration
from actors.stage import Job
from actors.store import Store, StoreError
from mbml import envs
from mbml.deploy.folder import check_replaceable
from mbml.settings import check_fields
from pipeline.cluster import address_given, check_cpus, connect
from pipeline.config import ConfigError, Place, RunConfig
from pipeline.handover import POLICY, hand_over, write_policy
from pipeline.memory import check_memory
from pipeline.needs import needs_of
from pipeline.outcome import Outcome
from pipeline.plan import Plan, plan, plan_warmstart
from pipeline.publish import Log, alone_in, keep_report, make_folder, publish, say_failures
from pipeline.report.page import Page, run_page
from pipeline.report.warmstart import warmstart_page
from pipeline.results import Results, best_policy, gather, gather_warmstart
from pipeline.scheduler import discard_damaged, execute, standing
from pipeline.tracking import check_tracker, track

_POLL_SECONDS = 15.0


def carry_out(
    title: str,
    config: RunConfig,
    jobs: Iterable[Job],
    place: Place,
    out: Path,
    log: Log,
    gathered: Callable[[Store, Outcome], Results],
    page: Callable[[Results, Path], Page] = run_page,
    trials: Callable[[Store], Mapping[str, str]] = lambda store: {},
    all_jobs: Iterable[Job] = (),
) -> int:
    """Make every artefact that is missing, then write the results that are `gathered` from them into `out`.

    `trials` runs what comes after the jobs, inside Ray; it returns what went wrong. `all_jobs` has those as well, for
    --repair. Returns the exit code: 2 where jobs failed because of what they were given, 1 where one failed otherwise.
    """
    store, jobs = prepare(place), list(jobs)
    make_folder(out)
    if place.repair:
        discard_damaged([*jobs, *all_jobs], store, log)
    started = time.monotonic()
    log(f"{title}: starting Ray (seconds, on a busy machine half a minute)")
    with connect(place.num_cpus, dashboard=place.dashboard, modules=envs.modules_of(config.env)) as where:
        check_memory([*jobs, *all_jobs])
        (out / "config.json").write_text(json.dumps(asdict(config.resolved()), indent=1) + "\n")
        log(f"{len(jobs)} jobs on {where}")
        if address_given() and "://" not in store.url:
            log(f"the store is {store.url}, a folder that every machine of the cluster must have")
        outcome = execute(jobs, store.url, log=log, poll_seconds=_POLL_SECONDS, **limits_of(place))
        if not outcome.complete:
            return say_failures(outcome, store.url, log)
        outcome.failed |= trials(store)
    code = say_failures(outcome, store.url, log) if outcome.failed else 0
    with alone_in(out, log):
        publish(results := gathered(store, outcome), out, log, page)
        if place.track:
            track(place.track, results, out, log)
        if place.report_in_store:
            keep_report(store, out, log)
    policy = f" Policy: {out / POLICY}." if "policy" in results.run else ""
    log(f"Took {duration(time.monotonic() - started)}.{policy} Report: {out / 'report.html'}")
    return code


def prepare(place: Place) -> Store:
    """The store, which can be written to; raises ValueError for a place that cannot be used."""
    check_fields(place)
    check_cpus(place.num_cpus)
    check_tracker(place.track)
    address_given()  # raises for one of another kind
    limits_of(place)  # and for needs that cannot be meant
    store = Store(place.store)
    store.check_writable()
    return store


def limits_of(place: Place) -> dict[str, Any]:
    """What `execute` is told of a place; raises ConfigError for needs that cannot be meant."""
    same = {name: getattr(place, name) for name in ("most_pending", "wait_for_nodes", "checkpoint_seconds")}
    return same | {"needs": needs_of(place.needs)}


def title_of(config: RunConfig) -> str:
    """What is run, in words."""
    return f"{config.env}, preset {config.preset}, seed {config.seed}"


def run(config: RunConfig, place: Place, out: Path, log: Log) -> int:
    """Collect, learn, relabel, distil, evaluate and report."""
    check_replaceable(out / POLICY)
    jobs = plan(config)

    def gathered(store: Store, outcome: Outcome) -> Results:
        return hand_over(jobs, store, gather(jobs, store, outcome), out)

    return carry_out(title_of(config), config, jobs.jobs.values(), place, out, log, gathered)


def warmstart(config: RunConfig, place: Place, out: Path, log: Log, *, axis: str, comparison: str) -> int:
    """SAC on every unseen task, from scratch and from the multi-task policy, and its figures."""
    jobs = plan_warmstart(config)

    def gathered(store: Store, outcome: Outcome) -> Results:
        results = gather_warmstart(jobs, store, outcome)
        return replace(results, run=results.run | {"axis": axis, "comparison": comparison})

    return carry_out(title_of(config), config, jobs.jobs.values(), place, out, log, gathered, warmstart_page)


def report(config: RunConfig, place: Place, out: Path, log: Log) -> int:
    """Write the report of a finished run again, from its artefacts alone."""
    jobs, store, results = _finished(config, place)
    check_replaceable(out / POLICY)
    make_folder(out)
    with alone_in(out, log):
        publish(hand_over(jobs, store, results, out), out, log)
    log(f"Report: {out / 'report.html'}")
    return 0


def export_policy(config: RunConfig, place: Place, folder: Path, log: Log, *, graphs: bool) -> int:
    """Write the policy of a finished run that does best on the training tasks as a folder."""
    check_replaceable(folder)
    jobs, store, results = _finished(config, place)
    if (chosen := best_policy(results)) is None:
        raise ConfigError(f"{', '.join(config.methods)} left no policy that adapts; name another --method.")
    description = write_policy(jobs, store, results, chosen, folder, graphs=graphs)
    log(f"{description.title}, seed {chosen['seed']}, step {chosen['step']}. Policy: {folder}")
    return 0


def _finished(config: RunConfig, place: Place) -> tuple[Plan, Store, Results]:
    jobs, store = plan(config), Store(place.store)
    try:
        return jobs, store, gather(jobs, store, standing(jobs.jobs.values(), store))
    except StoreError as error:
        raise ConfigError(
            f"There is no finished run of {title_of(config)} with these settings in {place.store}: run it first "
            f"(make pipeline ENV={config.env} ...). {error}"
        ) from None
