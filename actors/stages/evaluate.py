"""Scores of a snapshot of a multi-task policy, and the references that they stand beside."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.artefacts import load_teachers, snapshot_of, tasks_of, write_json
from actors.stage import Ref, Run, stage
from mbml import envs
from mbml.envs import Task
from mbml.evaluate import (
    EvaluateConfig,
    Evaluation,
    best_of,
    counted_score,
    evaluate_simple_references,
    evaluate_student,
    evaluate_teachers,
)
from mbml.policy import ContextPolicy
from mbml.settings import later


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
    """Random, zero action and the teacher of every training task that is played, or the pooled teacher alone."""

    teach: tuple[Ref, ...]
    pooled: bool = later(False)


@stage(version=1)
def evaluate(spec: Evaluate, run: Run) -> dict[str, Any]:
    """Leaves `scores.json`."""
    policy = ContextPolicy.load(snapshot_of(run.inputs[spec.trained], spec.step))
    splits = {"test": spec.test} | ({"train": spec.train} if spec.config.train_tasks else {})
    tasks = [task for split, indices in splits.items() for task in tasks_of(spec.env, split, indices)]
    scores = evaluate_student(policy, spec.of(tasks), partial(run.report, total=spec.config.episodes, unit="episodes"))
    columns = {
        "score": counted_score(scores.returns, spec.config),
        "episodes": scores.returns.mean(1),
        "posterior_mean": scores.posterior_mean,
    }
    result: dict[str, Any] = {"step": spec.step}
    for split, indices in splits.items():
        mine = [task.split == split for task in tasks]
        result[split] = {"task": list(indices)} | {name: column[mine].tolist() for name, column in columns.items()}
    write_json(run.out / "scores.json", result)
    return {f"{split}_return": sum(result[split]["score"]) / len(result[split]["score"]) for split in splits}


@stage(version=2)
def references(spec: References, run: Run) -> dict[str, Any]:
    """Leaves `references.json`."""
    teachers = load_teachers(run.paths(spec.teach), None if spec.pooled else spec.train)
    result: dict[str, Any] = {}
    for done, (split, indices) in enumerate({"test": spec.test, "train": spec.train}.items(), 1):
        played = spec.of(tasks_of(spec.env, split, indices))
        returns = evaluate_teachers(teachers, played)
        found = ({} if spec.pooled else evaluate_simple_references(played)) | {"teachers": returns.mean(-1)}
        if spec.config.reference_episodes > 1 and not spec.pooled:
            found["best_teacher"] = best_of(returns)
        result[split] = {"task": list(indices)} | {name: table.tolist() for name, table in found.items()}
        run.report(done, 2, "splits")
    write_json(run.out / "references.json", result)
    return {}
