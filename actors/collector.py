"""Actor that collects the batches of a stack of training tasks with SAC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.artefacts import Checkpoint, env_maker, layout_of, tasks_of, write_lines
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml import envs
from mbml.collect import Collection
from mbml.data import DatasetWriter, validate
from mbml.serialise import save_tree


class Collector(Worker):
    """Payload: `environment`, `horizon`, `tasks`, `config` (CollectConfig), `seed`. Leaves `dataset/`,
    `curves.jsonl` and `policies.safetensors`."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Collect, learning all the while, and write the Arrow dataset."""
        environment, horizon, tasks = (job.payload[k] for k in ("environment", "horizon", "tasks"))
        config, seed = job.payload["config"], job.payload["seed"]
        layout = layout_of(environment)
        make_envs, graphs = env_maker(environment, tasks, horizon), job.payload.get("cuda_graphs", False)
        collection = Collection(config, layout, make_envs, tasks, seed, device=self.device, cuda_graphs=graphs)
        checkpoint = Checkpoint(out)
        state = checkpoint.load()
        if state is not None:
            collection.load_state_dict(state)
        while collection.done < collection.total:
            metrics = collection.advance()
            self.report(collection.done, collection.total, collection.unit, **metrics)
            checkpoint.save_if_due(collection.state_dict)
        self._write(collection, out, environment, horizon, job)
        checkpoint.discard()
        return collection.latest()

    def _write(self, collection: Collection, out: Output, environment: str, horizon: int, job: Job) -> None:
        layout, tasks = collection.layout, collection.tasks
        about = {"method": "sac", "seed": job.payload["seed"], "steps": collection.config.steps}
        with DatasetWriter(
            out.path / "dataset",
            environment=environment,
            observation_size=layout.observation_size,
            action_size=layout.action_size,
            horizon=horizon or envs.get(environment).horizon,
            collection=about,
        ) as writer:
            chosen = tasks_of(environment, "train", tasks)
            for task, batch in zip(chosen, collection.batches(), strict=True):
                writer.add_task(task.index, batch, parameter=task.vector.tolist(), label=task.label)
        validate(out.path / "dataset")
        write_lines(out.path / "curves.jsonl", collection.curve)
        save_tree(out.path / "policies.safetensors", {"tasks": tasks, "policy": collection.learner.policy.save()})
