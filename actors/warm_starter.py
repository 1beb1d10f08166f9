"""Actor of SAC on a stack of unseen tasks, from scratch or from the multi-task policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.artefacts import (
    ArtefactError,
    Checkpoint,
    env_maker,
    layout_of,
    load_policy,
    snapshot_of,
    write_json,
    write_lines,
)
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml.collect import Collection
from mbml.rows import resident
from mbml.sac import SAC
from mbml.seeding import generator_of, seed_of
from mbml.serialise import save_tree
from mbml.students import Student
from mbml.warmstart import ImitationConfig, TwoBatchSAC, critics_at, explore, imitate


@dataclass(frozen=True)
class Start:
    """Where a warm start begins."""

    snapshot: int
    """Step of the multi-task policy's snapshot."""
    initial_steps: int
    """Environment steps per task of the multi-task policy."""
    imitation: ImitationConfig
    """How it is imitated."""


class WarmStarter(Worker):
    """Payload: `environment`, `horizon`, `tasks` (of the test split), `config` (CollectConfig), `seed`, `policy_rate`
    (None: plain SAC, one mini-batch) and `start` (a Start, or None: from random networks); input `distill` for a
    Start. Leaves `curves.jsonl`, whose steps leave out those of the multi-task policy, `start.json` and
    `policies.safetensors`."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Explore and imitate where there is something to start from, then SAC to the end."""
        payload = job.payload
        environment, tasks, config = payload["environment"], payload["tasks"], payload["config"]
        make_envs = env_maker(environment, tasks, payload["horizon"], "test")
        learner, graphs = _learner(job, self.device), payload.get("cuda_graphs", False)
        collection = Collection(
            config, layout_of(environment), make_envs, tasks, payload["seed"], learner, cuda_graphs=graphs
        )
        checkpoint = Checkpoint(out)
        state = checkpoint.load()
        if state is None:
            start = self._start(job, collection, inputs) if payload["start"] else {}
            collection.record()
        else:
            start = state["start"]
            collection.load_state_dict(state["collection"])
        while collection.done < collection.total:
            metrics = collection.advance()
            self.report(collection.done, collection.total, collection.unit, **metrics)
            checkpoint.save_if_due(lambda: {"collection": collection.state_dict(), "start": start})
        write_lines(out.path / "curves.jsonl", collection.curve)
        write_json(out.path / "start.json", start)
        save_tree(out.path / "policies.safetensors", {"tasks": tasks, "policy": learner.policy.save()})
        checkpoint.discard()
        return collection.latest()

    def _start(self, job: Job, collection: Collection, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Warm the collection's learner; what the multi-task policy reached, and how well it was imitated."""
        payload, layout, learner = job.payload, collection.layout, collection.learner
        start: Start = payload["start"]
        tasks, seed = payload["tasks"], payload["seed"]
        student = load_policy(snapshot_of(inputs["distill"][0], start.snapshot))
        if not isinstance(student, Student) or not isinstance(learner, TwoBatchSAC):
            raise ArtefactError("A warm start needs a distilled policy with a value function, and two mini-batches.")
        envs = env_maker(payload["environment"], tasks, payload["horizon"], "test")(1)
        envs.seed([seed_of(seed, "warmstart", "environment", task) for task in tasks])
        self.report(0, start.initial_steps, "steps of the multi-task policy")
        explored = explore(
            student, layout, envs, start.initial_steps, generator_of(seed, "warmstart", "policy", *tasks)
        )
        rows = resident(explored.rows, self.device)
        generator = generator_of(seed, "warmstart", "imitate", *tasks, device=self.device)
        losses = imitate(learner.policy, layout, rows, start.imitation, generator)
        learner.start_from(critics_at(student, explored.z))
        return {"policy_return": explored.returns.tolist(), "imitation_loss": losses.tolist()}


def _learner(job: Job, device: str) -> SAC:
    payload = job.payload
    layout, sac = layout_of(payload["environment"]), payload["config"].sac
    tasks, rate = payload["tasks"], payload["policy_rate"]
    generator = generator_of(payload["seed"], "warmstart", "learner", *tasks, device=device)
    if rate is None:
        return SAC(sac, layout, len(tasks), generator)
    return TwoBatchSAC(sac, layout, len(tasks), generator, rate)
