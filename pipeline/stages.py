"""The stage graph of a run: collect -> bcq, models -> relabel -> distill -> evaluate, as jobs with content keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any

from actors.bcq_trainer import BCQTrainer
from actors.collector import Collector
from actors.distiller import Distiller
from actors.evaluator import Evaluator
from actors.job import Job
from actors.model_trainer import ModelTrainer
from actors.relabeller import Relabeller
from actors.worker import Worker
from mbml import envs
from mbml.distill import METHODS
from pipeline.config import PipelineConfig
from pipeline.scheduler import Node

STAGE_VERSIONS = {"collect": 1, "bcq": 1, "models": 1, "relabel": 1, "distill": 1, "evaluate": 1}
"""Raised when a stage's code changes what it computes, so that older artefacts are not taken for its result."""

Reference = tuple[str, str]


@dataclass
class Plan:
    """All jobs of a run, and where the report finds what."""

    config: PipelineConfig
    train: list[int]
    test: list[int]
    nodes: list[Node] = field(default_factory=list)
    artefacts: dict[str, list[Reference]] = field(default_factory=dict)
    """Artefacts by what they hold: collect, bcq, models, relabel, references."""
    runs: list[Run] = field(default_factory=list)
    """One multi-task learner each."""


@dataclass
class Run:
    """Artefacts of one multi-task learner: its training, the evaluation of every snapshot, its probes."""

    method: str
    seed: int
    distill: Reference
    evaluations: list[Reference]
    probes: Reference


def content_key(stage: str, payload: Mapping[str, Any], inputs: Mapping[str, Sequence[Reference]]) -> str:
    """A key that changes with the stage's version, its configuration or any of its inputs, and with nothing else."""
    description = {
        "stage": stage,
        "version": STAGE_VERSIONS[stage],
        "payload": _plain(payload),
        "inputs": inputs,
    }
    text = json.dumps(description, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def plan(config: PipelineConfig) -> Plan:
    """The jobs of a checked configuration."""
    distribution = envs.get(config.env)
    train = list(range(config.train_tasks or len(distribution.tasks("train"))))
    test = list(range(config.test_tasks or len(distribution.tasks("test"))))
    result = Plan(config, train, test)
    collected = _stacked_jobs(result, "collect", Collector, config.collect.tasks_per_actor, _collect_payload, {})
    data = {"collect": collected}
    teachers = _stacked_jobs(result, "bcq", BCQTrainer, config.bcq.tasks_per_actor, _bcq_payload, data)
    models = _stacked_jobs(result, "models", ModelTrainer, config.models.tasks_per_actor, _models_payload, data)
    tables = _add(
        result,
        "relabel",
        "relabel",
        Relabeller,
        _common(config, horizon=False) | {"tasks": train, "config": config.relabel, "models": _model_configs(config)},
        _refs(data) | {"models": [r for _, r in models]},
    )
    result.artefacts["relabel"] = [tables]
    evaluation = {"train": train, "test": test, "config": config.evaluate}
    references = _add(
        result,
        "evaluate",
        "references",
        Evaluator,
        _common(config) | evaluation | {"kind": "references"},
        {"bcq": [r for _, r in teachers]},
    )
    result.artefacts["references"] = [references]
    for method in config.methods:
        for seed in config.distill_seeds:
            _add_run(result, method, seed, _refs(data) | _refs({"bcq": teachers}), tables, evaluation)
    return result


def _add_run(
    result: Plan,
    method: str,
    seed: int,
    inputs: dict[str, list[Reference]],
    tables: Reference,
    evaluation: dict[str, Any],
) -> None:
    """Distillation of one method with one seed, the evaluation of its snapshots, and its probes."""
    config = result.config
    learner = replace(config.distill, **METHODS[method])
    uses_tables = learner.union_context or learner.triplet == "relabelled"
    label = f"{method} seed {seed}"
    distilled = _add(
        result,
        "distill",
        f"distill {label}",
        Distiller,
        {
            "environment": config.env,
            "tasks": result.train,
            "config": learner,
            "seed": _seed(config, seed),
            "threads": config.distill_cpus,
        },
        inputs | {"relabel": [tables] if uses_tables else []},
        num_cpus=config.distill_cpus,
    )
    steps = [*range(learner.snapshot_every, learner.steps, learner.snapshot_every), learner.steps]
    evaluations = [
        _add(
            result,
            "evaluate",
            f"evaluate {label} step {step}",
            Evaluator,
            _common(config) | evaluation | {"kind": "student", "step": step},
            {"distill": [distilled]},
        )
        for step in steps
    ]
    probes = _add(
        result,
        "evaluate",
        f"probe {label}",
        Evaluator,
        _common(config, horizon=False) | evaluation | {"kind": "probes", "step": learner.steps},
        {"distill": [distilled], "collect": inputs["collect"]},
    )
    result.runs.append(Run(method, seed, distilled, evaluations, probes))


def _seed(config: PipelineConfig, seed: int) -> str:
    return f"{config.seed}/{seed}"


def _common(config: PipelineConfig, *, horizon: bool = True) -> dict[str, Any]:
    payload: dict[str, Any] = {"environment": config.env, "seed": config.seed}
    return payload | {"horizon": config.horizon or envs.get(config.env).horizon} if horizon else payload


def _collect_payload(config: PipelineConfig, tasks: list[int]) -> dict[str, Any]:
    return _common(config) | {"tasks": tasks, "config": config.collect}


def _bcq_payload(config: PipelineConfig, tasks: list[int]) -> dict[str, Any]:
    return _common(config) | {"tasks": tasks, "config": config.bcq}


def _models_payload(config: PipelineConfig, tasks: list[int]) -> dict[str, Any]:
    return _common(config, horizon=False) | {"tasks": tasks, "configs": _model_configs(config)}


def _model_configs(config: PipelineConfig) -> dict[str, Any]:
    configs = {"reward": config.models.reward}
    if envs.get(config.env).varies == "dynamics":
        configs["next_observation"] = config.models.next_observation
    return configs


Stacks = list[tuple[list[int], Reference]]


def _stacked_jobs(
    result: Plan, stage: str, worker: type[Worker], size: int, payload: Any, inputs: dict[str, Stacks]
) -> Stacks:
    """One job per stack of at most `size` training tasks, reading only the inputs that hold its tasks."""
    jobs: Stacks = []
    for start in range(0, len(result.train), size):
        tasks = result.train[start : start + size]
        name = f"{stage} tasks {tasks[0]}-{tasks[-1]}" if len(tasks) > 1 else f"{stage} task {tasks[0]}"
        needed = {k: [ref for held, ref in stacks if set(held) & set(tasks)] for k, stacks in inputs.items()}
        jobs.append((tasks, _add(result, stage, name, worker, payload(result.config, tasks), needed)))
    result.artefacts[stage] = [reference for _, reference in jobs]
    return jobs


def _refs(stacks: dict[str, Stacks]) -> dict[str, list[Reference]]:
    return {name: [reference for _, reference in jobs] for name, jobs in stacks.items()}


def _add(
    result: Plan,
    stage: str,
    name: str,
    worker: type[Worker],
    payload: dict[str, Any],
    inputs: dict[str, list[Reference]],
    *,
    num_cpus: int = 1,
) -> Reference:
    """Add one job to the plan; what it computes decides its key, its name does not."""
    key = content_key(stage, payload, inputs)
    job = Job(stage=stage, name=f"{name} ({result.config.env})", key=key, payload=payload, inputs=inputs)
    result.nodes.append(Node(job, worker, num_cpus=num_cpus))
    return stage, key
