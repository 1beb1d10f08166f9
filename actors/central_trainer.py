"""Actor of the central trainer: it pulls in all tasks' rows and trains one multi-task policy, MBML's or a rival's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.artefacts import Checkpoint, layout_of, load_rows, load_tables, load_teachers, snapshot_of, write_lines
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml.baselines.batch_pearl import BatchPEARL, BatchPEARLConfig
from mbml.baselines.contextual_bcq import ContextualBCQ, ContextualBCQConfig
from mbml.distill import DistillConfig, MultiTaskLearner
from mbml.meter import RunningMeans
from mbml.rows import resident
from mbml.seeding import generator_of

_LOG_POINTS = 200
Learner = MultiTaskLearner | ContextualBCQ | BatchPEARL


class CentralTrainer(Worker):
    """Payload: `environment`, `tasks`, `config`, `seed`; inputs `collect`, and for a DistillConfig `bcq` and `relabel`
    (may be empty). The type of the configuration decides the learner. Leaves `snapshots/step-NNNNNNN.safetensors` and
    `losses.jsonl`."""

    on_snapshot: Callable[[int, Path], None] | None = None
    """Hears the step and the unfinished artefact's folder after each snapshot; for a sweep that may stop early."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Train, leaving a snapshot every so many steps."""
        config = job.payload["config"]
        learner = _learner(job, inputs, self.device)
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
                learner.policy.save(snapshot_of(out.path, done), step=done)
                if self.on_snapshot is not None:
                    self.on_snapshot(done, out.path)
            if done % every == 0:
                losses = {name: float(value) for name, value in means.take().items()}
                curve.append({"step": done, **losses})
                self.report(done, config.steps, "steps", **losses)
                checkpoint.save_if_due(lambda: {"learner": learner.state_dict(), "curve": curve})
        write_lines(out.path / "losses.jsonl", curve)
        checkpoint.discard()
        return {name: value for name, value in curve[-1].items() if name != "step"} if curve else {}


def _learner(job: Job, inputs: dict[str, list[Path]], device: str) -> Learner:
    """The learner that the job's configuration describes; batches and contexts have a generator each."""
    config, tasks, seed = job.payload["config"], job.payload["tasks"], job.payload["seed"]
    layout, rows = layout_of(job.payload["environment"]), resident(load_rows(inputs["collect"], tasks), device)
    generators = [generator_of(seed, "distill", purpose, device=device) for purpose in ("batches", "contexts")]
    match config:
        case DistillConfig():
            order, teachers = load_teachers(inputs["bcq"])
            assert order == list(tasks), f"teachers of tasks {order} cannot teach tasks {tasks}"
            tables = load_tables(inputs["relabel"][0]).to(device) if inputs.get("relabel") else None
            return MultiTaskLearner(config, layout, rows, teachers.to(device), tables, *generators)
        case ContextualBCQConfig():
            return ContextualBCQ(config, layout, rows, *generators)
        case BatchPEARLConfig():
            return BatchPEARL(config, layout, rows, *generators)
    raise TypeError(f"no multi-task learner is configured by a {type(config).__name__}")
