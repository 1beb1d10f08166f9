"""Actor that trains MetaGenRL on the batch of one training task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.artefacts import Checkpoint, env_maker, layout_of, load_rows, write_lines
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml.baselines.metagenrl import MetaGenRLTraining
from mbml.serialise import save_tree


class MetaGenRLTrainer(Worker):
    """Payload: `environment`, `horizon`, `tasks` (one), `config` (MetaGenRLConfig), `seed`; input `collect`. Leaves
    `curves.jsonl` and `policy.safetensors`."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Train, evaluating on the way."""
        environment, horizon, (task,) = (job.payload[k] for k in ("environment", "horizon", "tasks"))
        config, seed = job.payload["config"], job.payload["seed"]
        rows = load_rows(inputs["collect"], [task])
        make_envs = env_maker(environment, [task], horizon)
        training = MetaGenRLTraining(config, layout_of(environment), rows, make_envs, task, seed)
        checkpoint = Checkpoint(out)
        state = checkpoint.load()
        if state is not None:
            training.load_state_dict(state)
        while training.done < training.total:
            training.advance()
            latest = {"return": training.curve[-1]["return"]} if training.curve else {}
            self.report(training.done, training.total, training.unit, **latest)
            checkpoint.save_if_due(training.state_dict)
        policy = {"hidden": config.hidden, "weights": training.learner.policy.state_dict()}
        save_tree(out.path / "policy.safetensors", {"tasks": [task], "policy": policy})
        write_lines(out.path / "curves.jsonl", training.curve)
        checkpoint.discard()
        return {"return": training.curve[-1]["return"]}
