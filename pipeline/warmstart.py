"""The warm-start experiment: SAC on every unseen task, from scratch and from the multi-task policy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.artefacts import read_json
from actors.stage import Ref
from actors.store import Store
from mbml import envs
from pipeline.config import RunConfig
from pipeline.plan import Arm, Plan, plan_warmstart
from pipeline.publish import Log
from pipeline.report.warmstart import table, write_warmstart
from pipeline.run import Place, carry_out, title_of
from pipeline.scheduler import Outcome
from pipeline.summarise import curves_of, task_table


def run(config: RunConfig, place: Place, out: Path, log: Log, *, axis: str, comparison: str) -> int:
    """Make every artefact that is missing, then figures and report in `out`; returns the exit code."""
    jobs = plan_warmstart(config)

    def finish(store: Store, outcome: Outcome) -> str:
        cost = {"cost": [asdict(stage) for stage in outcome.cost], "wall_seconds": outcome.wall_seconds}
        summary = summarise(jobs, store) | cost
        write_warmstart(summary, out, axis=axis, comparison=comparison)
        log(table(summary))
        return f"Report: {out / 'report.md'}"

    return carry_out(title_of(config), config, jobs.jobs.values(), place, out, log, finish)


def summarise(jobs: Plan, store: Store) -> dict[str, Any]:
    """What `pipeline.report.warmstart` draws: the curves of every arm, and plain SAC's on the training tasks.

    Raises StoreError when an artefact is missing.
    """
    config = jobs.config
    family = envs.get(config.env)

    def folders(refs: list[Ref]) -> list[Path]:
        return [store.fetch(*ref) for ref in refs]

    return {
        "environment": config.env,
        "paper_name": family.title,
        "preset": config.preset,
        "seed": config.seed,
        "horizon": config.horizon or family.horizon,
        "parameter": family.parameter,
        "config": asdict(config),
        "tasks": {split: task_table(config.env, split, list(getattr(jobs, split))) for split in ("train", "test")},
        "warmstart": [_summary(arm, config, folders(arm.jobs)) for arm in jobs.arms],
        "training_curves": curves_of(folders(jobs.artefacts["collect"]), "step"),
    }


def _summary(arm: Arm, config: RunConfig, folders: list[Path]) -> dict[str, Any]:
    curves = curves_of(folders, "step")
    for curve in curves:
        curve["step"] = [step + arm.initial_steps for step in curve["step"]]
    starts = [read_json(folder / "start.json") for folder in folders]
    return {
        "arm": arm.name,
        "seed": arm.seed,
        "initial_steps": arm.initial_steps,
        "warmup_steps": config.warmstart.online.warmup_steps,
        "curves": curves,
        "policy_return": [value for start in starts for value in start["policy_return"]] if arm.initial_steps else None,
        "imitation_loss": [v for start in starts for v in start["imitation_loss"]] if arm.initial_steps else None,
    }
