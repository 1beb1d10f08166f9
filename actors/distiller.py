"""Actor of the central trainer: it pulls in all tasks' rows, teachers and labels and distils one policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.artefacts import Checkpoint, layout_of, load_rows, load_tables, load_teachers, write_lines
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml.distill import DistillConfig, MultiTaskLearner
from mbml.meter import RunningMeans
from mbml.seeding import generator_of

_LOG_POINTS = 200


class Distiller(Worker):
    """Payload: `environment`, `tasks`, `config` (DistillConfig), `seed`; inputs `collect`, `bcq`, `relabel` (may be
    empty). Leaves `snapshots/step-NNNNNNN.safetensors` and `losses.jsonl`."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Train, leaving a snapshot every so many steps."""
        config: DistillConfig = job.payload["config"]
        learner = self._learner(job, config, inputs)
        checkpoint = Checkpoint(out)
        state = checkpoint.load()
        curve: list[dict[str, float]] = []
        if state is not None:
            learner.load_state_dict(state["learner"])
            curve = state["curve"]
        every = max(1, config.steps // _LOG_POINTS)
        means = RunningMeans()
        while learner.steps_done < config.steps:
            means.add(learner.update())
            done = learner.steps_done
            # Before the checkpoint: a run resumed from it must find every snapshot up to there.
            if done % config.snapshot_every == 0 or done == config.steps:
                learner.student.save(out.path / "snapshots" / f"step-{done:07d}.safetensors", step=done)
            if done % every == 0:
                losses = {name: float(value) for name, value in means.take().items()}
                curve.append({"step": done, **losses})
                self.report(done, config.steps, "steps", **losses)
                checkpoint.save_if_due(lambda: {"learner": learner.state_dict(), "curve": curve})
        write_lines(out.path / "losses.jsonl", curve)
        checkpoint.discard()
        return {name: value for name, value in curve[-1].items() if name != "step"} if curve else {}

    @staticmethod
    def _learner(job: Job, config: DistillConfig, inputs: dict[str, list[Path]]) -> MultiTaskLearner:
        tasks, seed = job.payload["tasks"], job.payload["seed"]
        rows = load_rows(inputs["collect"], tasks)
        order, teachers = load_teachers(inputs["bcq"])
        assert order == list(tasks), f"teachers of tasks {order} cannot teach tasks {tasks}"
        tables = load_tables(inputs["relabel"][0]) if inputs.get("relabel") else None
        return MultiTaskLearner(
            config,
            layout_of(job.payload["environment"]),
            rows,
            teachers,
            tables,
            generator_of(seed, "distill", "batches"),
            generator_of(seed, "distill", "contexts"),
        )
