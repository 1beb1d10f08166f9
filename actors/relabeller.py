"""Actor that labels every pooled transition for every task, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from actors.artefacts import layout_of, load_ensemble, load_history, load_rows, tasks_of, truth_table, write_json
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml import envs
from mbml.relabel import cross_task_error, diagnostics, pool_indices, relabel, relabel_with_truth
from mbml.rows import gather_rows, sample_indices, scalars_of
from mbml.seeding import generator_of
from mbml.serialise import save_tree

_ERROR_ROWS = 128  # transitions of every task for the error over training


class Relabeller(Worker):
    """Payload: `environment`, `tasks`, `config` (RelabelConfig), `models` (target -> EnsembleConfig), `seed`; inputs
    `collect`, `models`. Leaves `tables.safetensors` and `diagnostics.json`."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Compute the tables and say how good they are."""
        environment, tasks, config = (job.payload[k] for k in ("environment", "tasks", "config"))
        layout, configs = layout_of(environment), job.payload["models"]
        rows = load_rows(inputs["collect"], tasks)
        generator = generator_of(job.payload["seed"], "relabel")
        index = pool_indices(len(tasks), rows.shape[1], config.pool, generator)
        truth = truth_table(environment, tasks_of(environment, "train", tasks), rows, index)
        if config.source == "ground_truth":
            if truth is None:
                note = envs.get(environment).reward_note
                raise ValueError(f"relabel.source is ground_truth, but {environment} has no reward function: {note}")
            tables = relabel_with_truth(index, truth)
        else:
            models = {t: load_ensemble(inputs["models"], c, layout, t) for t, c in configs.items()}

            def report(done: int, total: int) -> None:
                self.report(done, total, "tasks")

            tables = relabel(rows, index, layout, models["reward"], models.get("next_observation"), config, report)
        save_tree(out.path / "tables.safetensors", tables.tensors())
        found: dict[str, Any] = dict(diagnostics(tables, truth))
        found["reward_std"] = [round(float(r), 6) for r in scalars_of(rows)[..., 0].std(1)]
        found["threshold"] = config.reward_threshold
        found["error_note"] = envs.get(environment).reward_note
        found["training"] = None
        if truth is not None and config.source == "ensemble":
            chosen = sample_indices(len(tasks), _ERROR_ROWS, index.shape[1], generator)
            sample = gather_rows(rows, index.gather(1, chosen))
            labels = torch.stack([gather_rows(row.unsqueeze(-1), chosen).squeeze(-1) for row in truth])
            found["training"] = [
                {"step": step} | cross_task_error(model, sample, labels, layout, config.reward_threshold)
                for step, model in load_history(inputs["models"], configs["reward"], layout)
            ]
        write_json(out.path / "diagnostics.json", found)
        return {"eligible_share": float(tables.eligible.float().mean())}
