"""Scores of a snapshot of a multi-task policy, and the references that they stand beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.artefacts import load_policy, load_teachers, snapshot_of, tasks_of, write_json
from actors.stage import Ref, Run, stage
from mbml import envs
from mbml.envs import Task
from mbml.evaluate import (
    EvaluateConfig,
    Evaluation,
    counted_score,
    evaluate_simple_references,
    evaluate_student,
    evaluate_teachers,
)


@dataclass(frozen=True)
class Protocol:
    """What is played: the tasks of both splits, by a protocol."""

    env: str
    horizon: int
    train: tuple[int, ...]
    test: tuple[int, ...]
    config: EvaluateConfig
    seed: int

    def of(self, tasks: Sequence[Task]) -> Evaluation:
        """The same of these tasks."""
        return Evaluation(envs.get(self.env), tasks, self.horizon, self.config, self.seed)


@dataclass(frozen=True)
class Evaluate(Protocol):
    """A snapshot of the multi-task learner `trained`."""

    trained: Ref
    step: int


@dataclass(frozen=True)
class References(Protocol):
    """Random, zero action and every teacher."""

    teach: tuple[Ref, ...]


@stage(version=1)
def evaluate(spec: Evaluate, run: Run) -> dict[str, Any]:
    """Leaves `scores.json`."""
    policy = load_policy(snapshot_of(run.inputs[spec.trained], spec.step))
    splits = {"test": spec.test} | ({"train": spec.train} if spec.config.train_tasks else {})
    tasks = [task for split, indices in splits.items() for task in tasks_of(spec.env, split, indices)]

    def report(done: int) -> None:
        run.report(done, spec.config.episodes, "episodes")

    scores = evaluate_student(policy, spec.of(tasks), report)
    score = counted_score(scores.returns, spec.config)
    result: dict[str, Any] = {"step": spec.step}
    start = 0
    for split, indices in splits.items():
        part = slice(start, start + len(indices))
        start += len(indices)
        result[split] = {
            "task": list(indices),
            "score": score[part].tolist(),
            "episodes": scores.returns[part].mean(1).tolist(),
            "posterior_mean": scores.posterior_mean[part].tolist(),
        }
    write_json(run.out / "scores.json", result)
    return {f"{split}_return": sum(result[split]["score"]) / len(result[split]["score"]) for split in splits}


@stage(version=2)
def references(spec: References, run: Run) -> dict[str, Any]:
    """Leaves `references.json`."""
    _, teachers = load_teachers(run.paths(spec.teach))
    result: dict[str, Any] = {}
    for done, (split, indices) in enumerate({"test": spec.test, "train": spec.train}.items()):
        tasks = tasks_of(spec.env, split, indices)
        simple = {name: value.tolist() for name, value in evaluate_simple_references(spec.of(tasks)).items()}
        table = evaluate_teachers(teachers, spec.of(tasks)).tolist()
        result[split] = {"task": list(indices), **simple, "teachers": table}
        run.report(done + 1, 2, "splits")
    write_json(run.out / "references.json", result)
    return {}
