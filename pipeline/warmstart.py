"""The warm-start experiment: SAC on every unseen task, from scratch and from the multi-task policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from actors.store import Store
from pipeline.config import Place, RunConfig
from pipeline.plan import plan_warmstart
from pipeline.publish import Log, publish
from pipeline.report.warmstart import warmstart_page
from pipeline.results import gather_warmstart
from pipeline.run import carry_out, title_of
from pipeline.scheduler import Outcome


def run(config: RunConfig, place: Place, out: Path, log: Log, *, axis: str, comparison: str) -> int:
    """Make every artefact that is missing, then figures and report in `out`; returns the exit code."""
    jobs = plan_warmstart(config)

    def finish(store: Store, outcome: Outcome) -> str:
        results = gather_warmstart(jobs, store, outcome)
        shown = replace(results, run=results.run | {"axis": axis, "comparison": comparison})
        publish(shown, out, log, warmstart_page)
        return f"Report: {out / 'report.html'}"

    return carry_out(title_of(config), config, jobs.jobs.values(), place, out, log, finish)
