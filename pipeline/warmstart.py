"""The warm-start experiment: SAC on every unseen task, from scratch and from the multi-task policy (section 8)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.artefacts import read_json
from actors.store import Store
from actors.warm_starter import Start, WarmStarter
from mbml import envs
from pipeline.cluster import connect
from pipeline.config import ConfigError, PipelineConfig
from pipeline.graph import Node
from pipeline.methods import METHODS
from pipeline.publish import Log, make_folder, say_failures
from pipeline.report.warmstart import table, write_warmstart
from pipeline.scheduler import duration, execute
from pipeline.stages import Plan, Reference, add_job, common_payload, learner_device, plan
from pipeline.summarise import curves_of, task_table


@dataclass(frozen=True)
class Arm:
    """One learning curve per unseen task: SAC from some start, with one seed."""

    name: str
    """`sac`, `sac_two_batches`, or `warm_` and the method of the multi-task policy."""
    seed: int
    initial_steps: int
    """Environment steps per task of the multi-task policy before it."""
    jobs: list[Reference]
    """One per stack of tasks."""


@dataclass(frozen=True)
class WarmStartPlan:
    """The jobs that the experiment needs, those of the multi-task policies among them."""

    stages: Plan
    arms: list[Arm]
    nodes: list[Node]


def check(config: PipelineConfig) -> None:
    """Raise ConfigError, one sentence, for a warm start that cannot be run."""
    config.check()
    online, shape = config.warmstart.online, config.distill.student.value_hidden
    if online.sac.critic_hidden != shape:
        raise ConfigError(
            f"warmstart.online.sac.critic_hidden is {online.sac.critic_hidden}; the critics start from the multi-task "
            f"policy's value function, so it must be distill.student.value_hidden, {shape}."
        )
    if online.warmup_steps >= online.steps:
        raise ConfigError(
            f"warmstart.online.warmup_steps is {online.warmup_steps}; it must be below warmstart.online.steps, "
            f"{online.steps}."
        )
    snapshot, every, last = config.warmstart.snapshot, config.distill.snapshot_every, config.distill.steps
    if snapshot and snapshot != last and (snapshot % every or snapshot > last):
        raise ConfigError(
            f"warmstart.snapshot is {snapshot}; snapshots are taken every {every} steps up to {last} "
            "(0 means the last)."
        )
    unfit = [method for method in config.methods if METHODS[method].learner != "distill"]
    if unfit:
        raise ConfigError(
            f"{unfit[0]} has no distilled value function to start from; give methods among "
            f"{', '.join(name for name, method in METHODS.items() if method.learner == 'distill')}."
        )


def plan_warmstart(config: PipelineConfig) -> WarmStartPlan:
    """Arms from scratch and from each of `config.methods`, for every seed of the multi-task learner."""
    check(config)
    stages = plan(config)
    warm = config.warmstart
    arms = []
    for seed in config.distill_seeds:
        arms.append(_arm(stages, "sac", seed, None, None, {}))
        arms.append(_arm(stages, "sac_two_batches", seed, warm.policy_rate, None, {}))
        start = Start(warm.snapshot or config.distill.steps, warm.initial_steps, warm.imitation)
        for run in stages.runs:
            if run.seed == seed:
                name = f"warm_{run.variant.label}"
                arms.append(_arm(stages, name, seed, warm.policy_rate, start, {"distill": [run.trained]}))
    wanted = [*(job for arm in arms for job in arm.jobs), *stages.artefacts["collect"]]
    return WarmStartPlan(stages, arms, _needed(stages, wanted))


def _arm(
    stages: Plan,
    name: str,
    seed: int,
    policy_rate: float | None,
    start: Start | None,
    inputs: dict[str, list[Reference]],
) -> Arm:
    config, online = stages.config, stages.config.warmstart.online
    jobs = []
    for first in range(0, len(stages.test), online.tasks_per_actor):
        tasks = stages.test[first : first + online.tasks_per_actor]
        payload = common_payload(config) | {
            "seed": f"{config.seed}/{seed}",
            "tasks": tasks,
            "config": online,
            "policy_rate": policy_rate,
            "start": start,
            **learner_device(config),
        }
        label = f"{name} seed {seed} unseen tasks {tasks[0]}-{tasks[-1]}"
        jobs.append(add_job(stages, "warmstart", label, WarmStarter, payload, inputs, num_gpus=config.learner_gpus))
    return Arm(name, seed, start.initial_steps if start else 0, jobs)


def _needed(stages: Plan, wanted: list[Reference]) -> list[Node]:
    """The jobs that make `wanted`, and all that they are made from, in the order of the plan."""
    found: set[Reference] = set()
    while wanted:
        reference = wanted.pop()
        if reference not in found:
            found.add(reference)
            wanted += [ref for refs in stages.jobs[reference].job.inputs.values() for ref in refs]
    return [node for reference, node in stages.jobs.items() if reference in found]


def summarise(jobs: WarmStartPlan, store: Store) -> dict[str, Any]:
    """What `pipeline.report.warmstart` draws: the curves of every arm, and plain SAC's on the training tasks.

    Raises StoreError when an artefact is missing.
    """
    stages, config = jobs.stages, jobs.stages.config
    distribution = envs.get(config.env)

    def folders(references: list[Reference]) -> list[Path]:
        return [store.fetch(*reference) for reference in references]

    return {
        "environment": config.env,
        "paper_name": distribution.title,
        "preset": config.preset,
        "seed": config.seed,
        "horizon": config.horizon or distribution.horizon,
        "parameter": distribution.parameter,
        "config": asdict(config),
        "tasks": {split: task_table(config.env, split, getattr(stages, split)) for split in ("train", "test")},
        "warmstart": [_summary(arm, config, folders(arm.jobs)) for arm in jobs.arms],
        "training_curves": curves_of(folders(stages.artefacts["collect"]), "step"),
    }


def _summary(arm: Arm, config: PipelineConfig, folders: list[Path]) -> dict[str, Any]:
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


def run(
    config: PipelineConfig,
    store_url: str,
    out: Path,
    log: Log,
    *,
    num_cpus: int | None,
    dashboard: bool,
    axis: str,
    comparison: str,
) -> int:
    """Make every artefact that is missing, then figures and report in `out`; returns the exit code."""
    jobs = plan_warmstart(config)
    store = Store(store_url)
    store.check_writable()
    make_folder(out)
    started = time.monotonic()
    with connect(num_cpus, dashboard=dashboard) as where:
        log(f"{config.env}, preset {config.preset}, seed {config.seed}: {len(jobs.nodes)} jobs on {where}")
        outcome = execute(jobs.nodes, store_url, log=log, poll_seconds=15.0)
    if not outcome.complete:
        return say_failures(outcome, store_url, log)
    summary = summarise(jobs, store) | {
        "cost": [asdict(stage) for stage in outcome.cost],
        "wall_seconds": outcome.wall_seconds,
    }
    write_warmstart(summary, out, axis=axis, comparison=comparison)
    log(table(summary))
    log(f"Took {duration(time.monotonic() - started)}. Report: {out / 'report.md'}")
    return 0
