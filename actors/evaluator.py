"""Actor that evaluates snapshots of the multi-task policy, and the references a score stands beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.artefacts import layout_of, load_rows, load_teachers, tasks_of, truth_table, write_json
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
from mbml.policy import Student
from mbml.probes import own_posteriors, reward_swap
from mbml.seeding import generator_of

_PICTURE_CONTEXTS = 8
_PICTURE_SIZE = 128
_PROBE_ROWS = 10_000


class Evaluator(Worker):
    """Payload: `kind` (`student`, `references` or `probes`), `environment`, `horizon`, `train`, `test` (task indices),
    `config`, `seed`, `step` for the student; inputs by kind. Leaves `scores.json`, `references.json` or
    `probes.json`."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Evaluate what the payload's `kind` says."""
        kinds = {"student": self._student, "references": self._references, "probes": self._probes}
        return kinds[job.payload["kind"]](job, out, inputs)

    def _student(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        payload, config = job.payload, job.payload["config"]
        distribution = envs.get(payload["environment"])
        snapshot = inputs["distill"][0] / "snapshots" / f"step-{payload['step']:07d}.safetensors"
        student = Student.load(snapshot)
        splits = {"test": payload["test"]} | ({"train": payload["train"]} if config.train_tasks else {})
        tasks = [t for split, indices in splits.items() for t in tasks_of(payload["environment"], split, indices)]

        def report(done: int) -> None:
            self.report(done, config.episodes, "episodes")

        scores = evaluate_student(student, distribution, tasks, payload["horizon"], config, payload["seed"], report)
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

    def _probes(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        payload = job.payload
        layout = layout_of(payload["environment"])
        rows = load_rows(inputs["collect"], payload["train"])
        rows = rows[:, :: max(1, rows.shape[1] // _PROBE_ROWS)].contiguous()
        snapshot = inputs["distill"][0] / "snapshots" / f"step-{payload['step']:07d}.safetensors"
        student = Student.load(snapshot)
        generator = generator_of(payload["seed"], "probes")
        posteriors = own_posteriors(student, rows, layout, _PICTURE_SIZE, _PICTURE_CONTEXTS, generator)
        truth = truth_table(payload["environment"], payload["train"], rows)
        swap = None
        if truth is not None:
            swap = reward_swap(student, rows, truth, layout, generator)
        write_json(
            out.path / "probes.json",
            {
                "train": list(payload["train"]),
                "posterior_mean": posteriors.mean.tolist(),
                "reward_swap": swap,
            },
        )
        return swap or {}
