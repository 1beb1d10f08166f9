"""Actor that trains the reward ensembles (and next-state ensembles) of a stack of training tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.artefacts import Checkpoint, layout_of, load_rows, write_lines
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml.models import EnsembleTraining
from mbml.rows import resident
from mbml.serialise import save_tree


class ModelTrainer(Worker):
    """Payload: `environment`, `tasks`, `configs` (target -> EnsembleConfig), `seed`; input `collect`. Leaves
    `models.safetensors`, `curves.jsonl` and `history.safetensors`, the reward ensembles while they learned."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Train the ensembles one after the other."""
        tasks, configs, seed = (job.payload[name] for name in ("tasks", "configs", "seed"))
        rows, graphs = resident(load_rows(inputs["collect"], tasks), self.device), job.payload.get("cuda_graphs", False)
        layout = layout_of(job.payload["environment"])
        training = EnsembleTraining(configs, layout, rows, tasks, seed, self.device, cuda_graphs=graphs)
        checkpoint = Checkpoint(out)
        state = checkpoint.load()
        if state is not None:
            training.load_state_dict(state)
        while training.done < training.total:
            metrics = training.advance()
            self.report(training.done, training.total, training.unit, **metrics)
            checkpoint.save_if_due(training.state_dict)
        networks = {target: ensemble.network.save() for target, ensemble in training.ensembles.items()}
        save_tree(out.path / "models.safetensors", {"tasks": list(tasks), **networks})
        save_tree(out.path / "history.safetensors", {"tasks": list(tasks), "history": training.history})
        write_lines(out.path / "curves.jsonl", training.curve)
        checkpoint.discard()
        return {"loss": training.curve[-1]["loss"]}
