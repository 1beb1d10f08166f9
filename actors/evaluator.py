"""Actor that evaluates snapshots of multi-task policies, and the references a score stands beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.artefacts import load_policy, load_teachers, snapshot_of, tasks_of, write_json
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml import envs
from mbml.evaluate import (
    EvaluateConfig,
    counted_score,
    evaluate_simple_references,
    evaluate_student,
    evaluate_teachers,
)


class Evaluator(Worker):
    """Payload: `kind` (`student` or `references`), `environment`, `horizon`, `train`, `test` (task indices), `config`,
    `seed`, `step` for the student; input `distill` (any multi-task learner's artefact) or `bcq`. Leaves `scores.json`
    or `references.json`."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Evaluate what the payload's `kind` says."""
        kinds = {"student": self._student, "references": self._references}
        return kinds[job.payload["kind"]](job, out, inputs)

    def _student(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        payload, config = job.payload, job.payload["config"]
        distribution = envs.get(payload["environment"])
        policy = load_policy(snapshot_of(inputs["distill"][0], payload["step"]))
        splits = {"test": payload["test"]} | ({"train": payload["train"]} if config.train_tasks else {})
        tasks = [t for split, indices in splits.items() for t in tasks_of(payload["environment"], split, indices)]

        def report(done: int) -> None:
            self.report(done, config.episodes, "episodes")

        scores = evaluate_student(policy, distribution, tasks, payload["horizon"], config, payload["seed"], report)
        score = counted_score(scores.returns, config)
        result: dict[str, Any] = {"step": payload["step"]}
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
        write_json(out.path / "scores.json", result)
        return {f"{split}_return": sum(result[split]["score"]) / len(result[split]["score"]) for split in splits}

    def _references(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        payload = job.payload
        config: EvaluateConfig = payload["config"]
        distribution = envs.get(payload["environment"])
        _, teachers = load_teachers(inputs["bcq"])
        result: dict[str, Any] = {}
        for done, split in enumerate(("test", "train")):
            tasks = tasks_of(payload["environment"], split, payload[split])
            common = (distribution, tasks, payload["horizon"], config, payload["seed"])
            simple = evaluate_simple_references(*common)
            table = evaluate_teachers(teachers, *common)
            result[split] = {
                "task": list(payload[split]),
                **{name: value.tolist() for name, value in simple.items()},
                "teachers": table.tolist(),
            }
            self.report(done + 1, 2, "splits")
        write_json(out.path / "references.json", result)
        return {}
