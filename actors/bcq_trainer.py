"""Actor that trains the BCQ teachers of a stack of training tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.artefacts import Checkpoint, env_maker, layout_of, load_rows, write_json, write_lines
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml.rows import resident
from mbml.serialise import save_tree
from mbml.teaching import Teaching


class BCQTrainer(Worker):
    """Payload: `environment`, `horizon`, `tasks`, `config` (BCQStage), `seed`; input `collect`. Leaves
    `teachers.safetensors`, `curves.jsonl` and `selected.json`."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Train, evaluate, keep every task's best checkpoint."""
        environment, horizon, tasks = (job.payload[k] for k in ("environment", "horizon", "tasks"))
        config, seed = job.payload["config"], job.payload["seed"]
        rows = resident(load_rows(inputs["collect"], tasks), self.device)
        make_envs = env_maker(environment, tasks, horizon)
        graphs, places = job.payload.get("cuda_graphs", False), (tasks, seed, self.device)
        common = (config, layout_of(environment), rows, make_envs, *places)
        teaching = Teaching("bcq", config.learner, *common, cuda_graphs=graphs)
        checkpoint = Checkpoint(out)
        state = checkpoint.load()
        if state is not None:
            teaching.load_state_dict(state)
        while teaching.done < teaching.total:
            metrics = teaching.advance()
            self.report(teaching.done, teaching.total, teaching.unit, **metrics)
            checkpoint.save_if_due(teaching.state_dict)
        teachers = {"tasks": list(tasks), "teachers": teaching.best.state_dict()}
        save_tree(out.path / "teachers.safetensors", teachers)
        write_lines(out.path / "curves.jsonl", teaching.curve)
        write_json(out.path / "selected.json", teaching.selected())
        checkpoint.discard()
        return {"return": float(teaching.best_return.mean())}
