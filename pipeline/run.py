"""One run: plan the jobs, execute them over Ray, read the artefacts, write report and logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.store import Store
from pipeline.cluster import connect
from pipeline.config import ConfigError, PipelineConfig
from pipeline.logs import write_logs
from pipeline.report.page import write_report
from pipeline.report.text import markdown, table
from pipeline.scheduler import execute
from pipeline.stages import plan
from pipeline.summarise import summarise

Log = Callable[[str], None]


def run(config: PipelineConfig, store_url: str, out: Path, log: Log, *, num_cpus: int | None, dashboard: bool) -> int:
    """Make every artefact that is missing, then the report in `out`.

    Returns the exit code: 2 where jobs failed because of what they were given, 1 where one failed otherwise.
    """
    config.check()
    store = Store(store_url)
    store.check_writable()
    _make(out)
    jobs = plan(config)
    started = time.monotonic()
    with connect(num_cpus, dashboard=dashboard) as where:
        log(f"{config.env}, preset {config.preset}, seed {config.seed}: {len(jobs.nodes)} jobs on {where}")
        outcome = execute(jobs.nodes, store_url, log=log, poll_seconds=15.0)
    if outcome.failed:
        for name, sentence in outcome.failed.items():
            log(f"FAILED   {name}: {sentence}")
        for name, reason in outcome.skipped.items():
            log(f"skipped  {name}: {reason}")
        log(f"Finished jobs are kept in {store_url}; the same command tries only the missing ones again.")
        return 2 if len(outcome.refused) == len(outcome.failed) else 1
    summary = summarise(jobs, store, outcome)
    _publish(summary, out, log)
    log(f"Took {_duration(time.monotonic() - started)}. Report: {out / 'report.html'}")
    return 0


def report(config: PipelineConfig, store_url: str, out: Path, log: Log) -> int:
    """Write the report of a finished run again, from its artefacts alone."""
    config.check()
    summary = summarise(plan(config), Store(store_url), None)
    _make(out)
    _publish(summary, out, log)
    log(f"Report: {out / 'report.html'}")
    return 0


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The report folder {out} cannot be made ({error.strerror}); choose another with --out."
        ) from None


def _publish(summary: dict[str, Any], out: Path, log: Log) -> None:
    write_logs(summary, out)
    write_report(summary, out)
    pictures = "".join(f"\n![{path.stem}]({path.name})\n" for path in sorted(out.glob("*.png")))
    (out / "report.md").write_text(markdown(summary) + pictures)
    log(table(summary))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
