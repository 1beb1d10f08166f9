"""The golden runs and how to read what they leave: the one module here that knows today's files and classes.

A trace's name is `run/stage/what`, in words that outlive those files and classes; traces.json holds such names only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.artefacts import read_json, read_lines, snapshot_of
from actors.host import Host
from actors.stage import STAGES as REGISTRY
from actors.stage import Ref
from actors.stages.likelihood import RENEWED
from mbml.data import Dataset
from mbml.methods import METHODS
from mbml.serialise import load_tree
from mbml.settings import changed
from mbml.transitions import DTYPES
from pipeline.config import RunConfig
from pipeline.plan import Plan, plan, plan_warmstart
from pipeline.presets import preset

Arrays = dict[str, Any]
"""By name: tensors, arrays, numbers, None, and lists and dicts of them."""

STAGES: dict[str, tuple[str, ...]] = {
    "collect": (),
    "teach": ("collect",),
    "models": ("collect",),
    "relabel": ("collect", "models"),
    "references": ("teach",),
    "likelihood": ("collect", "teach", "models", "references"),
    "distill": ("collect", "teach", "relabel"),
    "baseline": ("collect", "teach", "relabel", "references"),
    "metagenrl": ("collect",),
    "evaluate": ("distill", "baseline"),
    "probe": ("collect", "distill", "baseline"),
    "warmstart": ("distill",),
}
"""The stages that the traces know, and which of them each one reads; a stage comes after those."""

_TODAY = {"baseline": "distill"}
"""Stages whose code names differ."""

_LEARNING: dict[str, Any] = {
    # Ten times the preset's, so that a wrong gradient shows after a few steps.
    **{f"{learner}.learning_rate": 3e-3 for learner in ("distill", "evidence", "contextual_bcq", "batch_pearl", "bcq")},
    "warmstart.imitation.learning_rate": 3e-3,
    "models.reward.members": 3,
    # Some labels pass the filter and some do not.
    "relabel.reward_threshold": 0.015,
}
_WIDE: dict[str, Any] = {
    # Large enough for the fused products and oneDNN's; the networks of all other golden runs are too small for them.
    "collect.sac.policy_hidden": (128, 128),
    "collect.sac.critic_hidden": (128, 128),
    "collect.sac.batch_size": 256,
    "collect.steps": 140,
    "collect.epoch_steps": 10,
    "bcq.hidden": (128, 128),
    "bcq.vae_hidden": (128, 128),
    "bcq.batch_size": 256,
    "bcq.target_candidates": 8,
    "teach.iterations": 4,
    "teach.evaluation_every": 2,
    "models.reward.hidden": (128, 128),
    "models.reward.batch_size": 256,
    "models.reward.steps": 10,
    "relabel.pool": 130,
    "relabel.reward_threshold": 0.005,
    "distill.student.value_hidden": (128, 128),
    "distill.student.decoder_hidden": (128, 128),
    "distill.student.perturbation_hidden": (128, 128),
    "distill.student.encoder.hidden": (128, 128),
    "distill.batch_size": 128,
    "distill.context_size": 128,
    "distill.steps": 4,
    "distill.snapshot_every": 4,
    "distill.partners": 1,
    "distill.final_learning_rate": 0.1,
}
_SHORT = 15
"""Steps of an episode where a body with legs would let another processor's rounding grow beyond the tolerance."""
_COLLECT_ONLY = {"half_cheetah_vel", "ant_goal", "humanoid_dir"}


def versions() -> dict[str, int]:
    """The version of every stage that the traces know."""
    found = {stage.name: stage.version for stage in REGISTRY.values()}
    return {stage: found[_TODAY.get(stage, stage)] for stage in STAGES}


def make(folder: Path) -> Iterator[tuple[str, Any]]:
    """Run everything in this process, with a store in `folder`, and yield what came out under its trace's name."""
    others = {"metagenrl", "bank"}  # the former has a run of its own, the latter is teachers and ensembles, traced here
    maze = _config("umaze_goal", methods=tuple(name for name in METHODS if name not in others))
    yield from _run("umaze_goal", plan(maze), folder)
    yield from _run_warmstart("umaze_goal", changed(maze, {"methods": ("full",)}), folder)
    yield from _run(
        "umaze_goal, wide", plan(changed(_config("umaze_goal", train_tasks=2, methods=("full",)), _WIDE)), folder
    )
    walker = {"relabel.reward_threshold": 0.15, "relabel.next_observation_threshold": 0.15}
    yield from _run(
        "walker_param", plan(changed(_config("walker_param", train_tasks=2, methods=("full",)), walker)), folder
    )
    yield from _run("ant_dir", plan(_config("ant_dir", train_tasks=2, methods=("metagenrl",), horizon=_SHORT)), folder)
    for env in sorted(_COLLECT_ONLY):
        yield from _run(env, plan(_config(env, train_tasks=2, horizon=_SHORT)), folder)


def _config(env: str, **sizes: Any) -> RunConfig:
    return changed(preset(env, "smoke"), _LEARNING | sizes)


def _run(run: str, jobs: Plan, folder: Path) -> Iterator[tuple[str, Any]]:
    """Make the artefacts of a plan that a trace reads, and yield their numbers."""
    names = _names(jobs)
    if run == "ant_dir":
        names = {reference: name for reference, name in names.items() if reference[0] in ("collect", "metagenrl")}
    if run in _COLLECT_ONLY:
        names = {reference: name for reference, name in names.items() if reference[0] == "collect"}
    yield from _read(run, jobs, names, folder)


def _run_warmstart(run: str, config: RunConfig, folder: Path) -> Iterator[tuple[str, Any]]:
    """SAC on the unseen tasks; what it starts from is in the store already, and traced."""
    warm = plan_warmstart(config)
    names = {job: f"warmstart/{arm.name}" for arm in warm.arms for job in arm.jobs}
    yield from _read(run, warm, names, folder)


def _names(jobs: Plan) -> dict[Ref, str]:
    """`stage/which one` of every artefact of a plan; what methods share has the name of the first."""
    names: dict[Ref, str] = {}

    def stacks(stage: str, references: list[Ref], method: str = "") -> None:
        for reference in references:
            spec = jobs.jobs[reference].spec
            tasks = spec.tasks if hasattr(spec, "tasks") else (spec.task,)
            label = f"tasks {tasks[0]}-{tasks[-1]}" if len(tasks) > 1 else f"task {tasks[0]}"
            names.setdefault(reference, f"{stage}/{method}{label}")

    stacks("collect", jobs.artefacts["collect"])
    stacks("teach", jobs.artefacts["teach"])
    stacks("metagenrl", jobs.artefacts.get("metagenrl", []))
    for stage, artefact in (("references", "references"), ("likelihood", "likelihood of bcq")):
        names.update(dict.fromkeys(jobs.artefacts.get(artefact, []), stage))
    for run in jobs.runs:
        label = run.variant.label
        if run.relabel is not None:
            stacks("models", list(jobs.jobs[run.relabel].spec.trained), f"{label}/")
            names.setdefault(run.relabel, f"relabel/{label}")
        kind = "distill" if METHODS[run.variant.method].learner == "distill" else "baseline"
        names[run.trained] = f"{kind}/{label}"
        names |= {reference: f"evaluate/{label}/step {step}" for step, reference in run.evaluations.items()}
        names[run.probes] = f"probe/{label}"
    return names


def _read(run: str, jobs: Plan, names: Mapping[Ref, str], folder: Path) -> Iterator[tuple[str, Any]]:
    host = Host(str(folder))
    for reference, job in jobs.jobs.items():
        if reference not in names:
            continue
        host.run(job)
        for what, value in _READERS[reference.stage](host.store.fetch(*reference)).items():
            yield f"{run}/{names[reference]}/{what}", value


def _collect(folder: Path) -> Arrays:
    dataset = Dataset.open(folder / "dataset")
    batches = [dataset.task(index) for index in dataset.task_indices]
    return {
        **{name: [getattr(batch, name) for batch in batches] for name in DTYPES},
        "task parameter": [dataset.meta(index)["parameter"] for index in dataset.task_indices],
        **_curves(folder / "curves.jsonl"),
    }


def _teach(folder: Path) -> Arrays:
    networks = load_tree(folder / "teachers.safetensors")["teachers"]
    selected = read_json(folder / "selected.json")
    return {
        **{name: _weights(network) for name, network in networks.items() if isinstance(network, Mapping)},
        **{f"selected {name}": [entry[name] for entry in selected] for name in ("iteration", "return")},
        **_curves(folder / "curves.jsonl"),
    }


def _models(folder: Path) -> Arrays:
    networks, curve = load_tree(folder / "models.safetensors"), read_lines(folder / "curves.jsonl")
    history = load_tree(folder / "history.safetensors")["history"]
    targets = [name for name in networks if name != "tasks"]
    return {
        **{f"{target} ensemble": _weights(networks[target]) for target in targets},
        **{f"{target} loss": [row["loss"] for row in curve if row["target"] == target] for target in targets},
        "reward ensembles on the way": [_weights(point["reward"]) for point in history],
    }


def _relabel(folder: Path) -> Arrays:
    tables, found = load_tree(folder / "tables.safetensors"), read_json(folder / "diagnostics.json")
    training = found["training"] or []
    errors = {
        "error of eligible labels": found["error_eligible"],
        "error of all labels": found["error_all"],
        **{f"{name} over training": [point[name] for point in training] or None for name in ("error", "kept")},
    }
    return {
        "pool": tables["index"],
        "reward": tables["reward"],
        "eligible": tables["eligible"],
        **({"next_observation": tables["next_observation"]} if "next_observation" in tables else {}),
        "eligible share": found["share"],
        **{name: value for name, value in errors.items() if value is not None},
    }


def _learner(folder: Path) -> Arrays:
    last = max(row["step"] for row in read_lines(folder / "losses.jsonl"))
    weights = load_tree(snapshot_of(folder, last))["weights"]
    groups: dict[str, list[Any]] = {}
    for name, tensor in weights.items():
        groups.setdefault(name.partition(".")[0].removesuffix("_network"), []).append(tensor)
    return {
        **{f"step {last}/{name}": tensors for name, tensors in groups.items()},
        **_curves(folder / "losses.jsonl"),
    }


def _metagenrl(folder: Path) -> Arrays:
    policy = load_tree(folder / "policy.safetensors")["policy"]
    return {"policy": _weights(policy), **_curves(folder / "curves.jsonl")}


def _evaluate(folder: Path) -> Arrays:
    found = read_json(folder / "scores.json")
    return _both(found, {"score": "score", "episodes": "episodes", "posterior_mean": "posterior mean"})


def _references(folder: Path) -> Arrays:
    found = read_json(folder / "references.json")
    return _both(found, {name: name.replace("_", " ") for name in ("random", "zero_action", "teachers")})


def _likelihood(folder: Path) -> Arrays:
    found = read_json(folder / "likelihood.json")
    return _both(found, {name: name.replace("_", " ") for name in RENEWED})


def _both(found: dict[str, Any], wanted: Mapping[str, str]) -> Arrays:
    return {f"{split} {ours}": found[split][name] for split in ("test", "train") for name, ours in wanted.items()}


def _probe(folder: Path) -> Arrays:
    found = read_json(folder / "probes.json")
    swap, foreign = found["reward_swap"] or {}, found["foreign_contexts"] or {}
    return {
        "posterior mean": found["posterior_mean"],
        "identification": found["identification"],
        **{f"reward_swap {name}": value for name, value in swap.items()},
        "told": found["told"],
        **{f"swapped {name}": value for name, value in (found["swapped"] or {}).items()},
        **{f"{name} task's context": value for name, value in foreign.items()},
        **({"last trajectory": found["last_trajectory"]} if found["last_trajectory"] else {}),
    }


def _warmstart(folder: Path) -> Arrays:
    return {
        **{f"start {name.replace('_', ' ')}": value for name, value in read_json(folder / "start.json").items()},
        **_curves(folder / "curves.jsonl"),
    }


_READERS: dict[str, Callable[[Path], Arrays]] = {
    "collect": _collect,
    "teach": _teach,
    "models": _models,
    "relabel": _relabel,
    "distill": _learner,
    "metagenrl": _metagenrl,
    "evaluate": _evaluate,
    "references": _references,
    "likelihood": _likelihood,
    "probe": _probe,
    "warmstart": _warmstart,
}
"""By stage."""


def _weights(network: Mapping[str, Any]) -> Any:
    """The tensors of a saved network, without the sizes beside them."""
    return network["weights"]


def _curves(path: Path) -> Arrays:
    """Columns of a file of JSON lines; the first points of a curve may lack a loss."""
    rows = read_lines(path)
    columns = dict.fromkeys(name for row in rows for name in row if name != "task")
    return {f"curve {name}": [row[name] for row in rows if name in row] for name in columns}
