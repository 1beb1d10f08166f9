"""The stage graph of a run: collect -> bcq, models -> relabel -> learner -> evaluate, as jobs with content keys."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from actors.bcq_trainer import BCQTrainer
from actors.central_trainer import CentralTrainer
from actors.collector import Collector
from actors.evaluator import Evaluator
from actors.job import Job
from actors.metagenrl_trainer import MetaGenRLTrainer
from actors.model_trainer import ModelTrainer
from actors.prober import Prober
from actors.relabeller import Relabeller
from actors.rllib_trainer import RLlibTrainer
from actors.worker import Worker
from mbml import envs
from pipeline.config import PipelineConfig
from pipeline.graph import Node
from pipeline.methods import METHODS, Variant, changed

STAGE_VERSIONS = {
    "collect": 1,
    "bcq": 2,
    "models": 3,
    "relabel": 2,
    "distill": 1,
    "baseline": 1,
    "metagenrl": 1,
    "rllib": 1,
    "evaluate": 2,
    "probe": 1,
    "warmstart": 1,
}
"""Raised when a stage's code changes what it computes, so that older artefacts are not taken for its result."""

Reference = tuple[str, str]


@dataclass
class Plan:
    """All jobs of a run, and where the report finds what."""

    config: PipelineConfig
    train: list[int]
    test: list[int]
    variants: list[Variant]
    jobs: dict[Reference, Node] = field(default_factory=dict)
    """By the artefact that they make, in the order in which they should start."""
    artefacts: dict[str, list[Reference]] = field(default_factory=dict)
    """Artefacts that all variants share or stand beside: collect, bcq, references, rllib, metagenrl."""
    runs: list[Run] = field(default_factory=list)
    """One multi-task learner each."""
    names: Counter[str] = field(default_factory=Counter)
    """How often a job's name was wanted."""
    stacks: dict[Any, Stacks] = field(default_factory=dict)
    """Jobs of the stages before the learners, by everything that decides them."""

    @property
    def nodes(self) -> list[Node]:
        """All jobs."""
        return list(self.jobs.values())

    def shared(self) -> list[Node]:
        """The jobs that are not a multi-task learner's own: what a sweep makes once, before its trials."""
        own = {reference for run in self.runs for reference in run.artefacts()}
        return [node for reference, node in self.jobs.items() if reference not in own]


@dataclass
class Run:
    """Artefacts of one multi-task learner: its training, the evaluation of every snapshot, its probes."""

    variant: Variant
    seed: int
    trained: Reference
    evaluations: dict[int, Reference]
    """By step."""
    probes: Reference
    relabel: Reference | None
    """The tables that it learned from, if any."""

    def artefacts(self) -> list[Reference]:
        """Everything that is made for this run alone."""
        return [self.trained, *self.evaluations.values(), self.probes]


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


def plan(config: PipelineConfig, variants: Sequence[Variant] | None = None) -> Plan:
    """The jobs of a checked configuration; without `variants` it compares `config.methods`.

    Jobs that two variants have in common are planned once.
    """
    distribution = envs.get(config.env)
    train = list(range(config.train_tasks or len(distribution.tasks("train"))))
    test = list(range(config.test_tasks or len(distribution.tasks("test"))))
    result = Plan(config, train, test, list(variants or [Variant(name, name) for name in config.methods]))
    base = _data(result, config)
    result.artefacts["collect"], result.artefacts["bcq"] = (_references(stacks) for stacks in base)
    result.artefacts["references"] = [
        add_job(
            result,
            "evaluate",
            "references",
            Evaluator,
            _evaluation(result, config) | {"kind": "references"},
            {"bcq": _references(base[1])},
        )
    ]
    result.artefacts["rllib"] = [
        add_job(
            result,
            "rllib",
            f"rllib {algorithm} task {task}",
            RLlibTrainer,
            common_payload(config) | {"algorithm": algorithm, "tasks": [task], "config": config.rllib},
            {"collect": [reference for tasks, reference in base[0] if task in tasks]},
        )
        for algorithm in config.rllib.algorithms
        for task in train
    ]
    for variant in result.variants:
        own = changed(config, variant.all_changes())
        if METHODS[variant.method].learner == "metagenrl":
            result.artefacts["metagenrl"] = [_add_metagenrl(result, own, seed) for seed in config.distill_seeds]
            continue
        for seed in config.distill_seeds:
            _add_run(result, own, variant, seed)
    return result


def _data(result: Plan, config: PipelineConfig) -> tuple[Stacks, Stacks]:
    """Collection and teachers."""
    collected = _stacked_jobs(result, "collect", Collector, config, _collect_payload, {})
    return collected, _stacked_jobs(result, "bcq", BCQTrainer, config, _bcq_payload, {"collect": collected})


def _tables(result: Plan, config: PipelineConfig, collected: Stacks) -> Reference:
    """Ensembles and the relabelling tables that they make; true rewards need no ensemble."""
    models: Stacks = []
    if config.relabel.source == "ensemble":
        models = _stacked_jobs(result, "models", ModelTrainer, config, _models_payload, {"collect": collected})
    return add_job(
        result,
        "relabel",
        "relabel",
        Relabeller,
        common_payload(config, horizon=False)
        | {"tasks": result.train, "config": config.relabel, "models": _model_configs(config)},
        {"collect": _references(collected), "models": _references(models)},
    )


def _add_run(result: Plan, config: PipelineConfig, variant: Variant, seed: int) -> None:
    """One learner with one seed, the evaluation of its snapshots, and its probes."""
    kind = METHODS[variant.method].learner
    learner = getattr(config, kind)
    collected, teachers = _data(result, config)
    data = {"collect": _references(collected)}
    inputs, tables = data, None
    if kind == "distill":
        if learner.union_context or learner.triplet == "relabelled":
            tables = _tables(result, config, collected)
        inputs = data | {"bcq": _references(teachers), "relabel": [tables] if tables else []}
    label = f"{variant.label} seed {seed}"
    trained = add_job(
        result,
        "distill" if kind == "distill" else "baseline",
        f"distill {label}" if kind == "distill" else label,
        CentralTrainer,
        {
            "environment": config.env,
            "tasks": result.train,
            "config": learner,
            "seed": f"{config.seed}/{seed}",
            "threads": config.distill_cpus,
            **learner_device(config, graphs=False),
        },
        inputs,
        num_cpus=config.distill_cpus,
        num_gpus=config.learner_gpus,
    )
    payload = _evaluation(result, config)
    evaluations = {
        step: add_job(
            result,
            "evaluate",
            f"evaluate {label} step {step}",
            Evaluator,
            payload | {"kind": "student", "step": step},
            {"distill": [trained]},
        )
        for step in [*range(learner.snapshot_every, learner.steps, learner.snapshot_every), learner.steps]
    }
    probes = add_job(
        result,
        "probe",
        f"probe {label}",
        Prober,
        payload | {"step": learner.steps, "last_trajectory": kind == "batch_pearl"},
        {"distill": [trained]} | data,
    )
    result.runs.append(Run(variant, seed, trained, evaluations, probes, tables))


def _add_metagenrl(result: Plan, config: PipelineConfig, seed: int) -> Reference:
    """MetaGenRL on the first training task's batch, evaluated there (section 6.3)."""
    collected, _ = _data(result, config)
    return add_job(
        result,
        "metagenrl",
        f"metagenrl seed {seed}",
        MetaGenRLTrainer,
        common_payload(config)
        | {"tasks": result.train[:1], "config": config.metagenrl, "seed": f"{config.seed}/{seed}"},
        {"collect": [reference for tasks, reference in collected if result.train[0] in tasks]},
    )


def _evaluation(result: Plan, config: PipelineConfig) -> dict[str, Any]:
    return common_payload(config) | {"train": result.train, "test": result.test, "config": config.evaluate}


def common_payload(config: PipelineConfig, *, horizon: bool = True) -> dict[str, Any]:
    """What the payloads of all stages begin with."""
    payload: dict[str, Any] = {"environment": config.env, "seed": config.seed}
    return payload | {"horizon": config.horizon or envs.get(config.env).horizon} if horizon else payload


def learner_device(config: PipelineConfig, *, graphs: bool = True) -> dict[str, Any]:
    """What a GPU adds to a learner's payload, because it rounds otherwise; nothing for a CPU."""
    if not config.learner_gpus:
        return {}
    return {"device": "cuda"} | ({"cuda_graphs": True} if graphs and config.cuda_graphs else {})


def _collect_payload(config: PipelineConfig, tasks: list[int]) -> dict[str, Any]:
    return common_payload(config) | {"tasks": tasks, "config": config.collect}


def _bcq_payload(config: PipelineConfig, tasks: list[int]) -> dict[str, Any]:
    return common_payload(config) | {"tasks": tasks, "config": config.bcq}


def _models_payload(config: PipelineConfig, tasks: list[int]) -> dict[str, Any]:
    return common_payload(config, horizon=False) | {"tasks": tasks, "configs": _model_configs(config)}


def _model_configs(config: PipelineConfig) -> dict[str, Any]:
    configs = {"reward": config.models.reward}
    if envs.get(config.env).varies == "dynamics":
        configs["next_observation"] = config.models.next_observation
    return configs


Stacks = list[tuple[list[int], Reference]]


def _stacked_jobs(
    result: Plan, stage: str, worker: type[Worker], config: PipelineConfig, payload: Any, inputs: dict[str, Stacks]
) -> Stacks:
    """One learner's job per stack of training tasks, reading only the inputs that hold its tasks; planned once for all
    runs."""
    read = tuple((name, *_references(stacks)) for name, stacks in inputs.items())
    device = learner_device(config)
    decides = (stage, config.seed, config.horizon, getattr(config, stage), read, *device.items())
    if decides in result.stacks:
        return result.stacks[decides]
    jobs = result.stacks[decides] = []
    size = getattr(config, stage).tasks_per_actor
    holder = {name: {task: ref for held, ref in stacks for task in held} for name, stacks in inputs.items()}
    for start in range(0, len(result.train), size):
        tasks = result.train[start : start + size]
        name = f"{stage} tasks {tasks[0]}-{tasks[-1]}" if len(tasks) > 1 else f"{stage} task {tasks[0]}"
        needed = {k: list(dict.fromkeys(found[task] for task in tasks)) for k, found in holder.items()}
        described = payload(config, tasks) | device
        jobs.append((tasks, add_job(result, stage, name, worker, described, needed, num_gpus=config.learner_gpus)))
    return jobs


def _references(stacks: Stacks) -> list[Reference]:
    return [reference for _, reference in stacks]


def add_job(
    result: Plan,
    stage: str,
    name: str,
    worker: type[Worker],
    payload: dict[str, Any],
    inputs: dict[str, list[Reference]],
    *,
    num_cpus: int = 1,
    num_gpus: float = 0.0,
) -> Reference:
    """Add one job to the plan unless it is there; what it computes decides its key, its name does not."""
    reference = stage, content_key(stage, payload, inputs)
    if reference not in result.jobs:
        name = f"{name} ({result.config.env})"
        result.names[name] += 1
        if result.names[name] > 1:  # the same stage under another configuration
            name += f" #{result.names[name]}"
        job = Job(stage=stage, name=name, key=reference[1], payload=payload, inputs=inputs)
        result.jobs[reference] = Node(job, worker, num_cpus=num_cpus, num_gpus=num_gpus)
    return reference
