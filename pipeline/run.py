"""One run: plan the jobs, execute them over Ray, read the artefacts, write report and logs."""

from __future__ import annotations

import time
from pathlib import Path

from actors.store import Store
from pipeline.cluster import connect
from pipeline.config import PipelineConfig
from pipeline.publish import Log, make_folder, publish, say_failures
from pipeline.results import gather
from pipeline.scheduler import duration, execute
from pipeline.stages import plan


def run(config: PipelineConfig, store_url: str, out: Path, log: Log, *, num_cpus: int | None, dashboard: bool) -> int:
    """Make every artefact that is missing, then the report in `out`.

    Returns the exit code: 2 where jobs failed because of what they were given, 1 where one failed otherwise.
    """
    config.check()
    store = Store(store_url)
    store.check_writable()
    make_folder(out)
    jobs = plan(config)
    started = time.monotonic()
    with connect(num_cpus, dashboard=dashboard) as where:
        log(f"{config.env}, preset {config.preset}, seed {config.seed}: {len(jobs.nodes)} jobs on {where}")
        outcome = execute(jobs.nodes, store_url, log=log, poll_seconds=15.0)
    if not outcome.complete:
        return say_failures(outcome, store_url, log)
    publish(gather(jobs, store, outcome), out, log)
    log(f"Took {duration(time.monotonic() - started)}. Report: {out / 'report.html'}")
    return 0


def report(config: PipelineConfig, store_url: str, out: Path, log: Log) -> int:
    """Write the report of a finished run again, from its artefacts alone."""
    config.check()
    results = gather(plan(config), Store(store_url))
    make_folder(out)
    publish(results, out, log)
    log(f"Report: {out / 'report.html'}")
    return 0
