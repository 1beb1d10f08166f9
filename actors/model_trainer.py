"""Actor that trains the reward ensembles (and next-state ensembles) of a stack of training tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.artefacts import Checkpoint, layout_of, load_rows, write_lines
from actors.job import Job
from actors.store import Output
from actors.worker import Worker
from mbml.capture import captured
from mbml.models import Ensemble, EnsembleConfig
from mbml.nets import select_stack
from mbml.rows import gather_rows, resident, sample_indices
from mbml.seeding import generator_of
from mbml.serialise import save_tree

_LOG_POINTS = 50
_SNAPSHOTS = 10  # of the reward ensembles, for the error over training (Fig. 7)


class ModelTrainer(Worker):
    """Payload: `environment`, `tasks`, `configs` (target -> EnsembleConfig), `seed`; input `collect`. Leaves
    `models.safetensors`, `curves.jsonl` and `history.safetensors`, the reward ensembles while they learned."""

    def work(self, job: Job, out: Output, inputs: dict[str, list[Path]]) -> dict[str, Any]:
        """Train the ensembles one after the other."""
        tasks, seed = job.payload["tasks"], job.payload["seed"]
        configs: dict[str, EnsembleConfig] = job.payload["configs"]
        layout = layout_of(job.payload["environment"])
        rows = resident(load_rows(inputs["collect"], tasks), self.device)
        checkpoint = Checkpoint(out)
        state = checkpoint.load() or {"networks": {}, "curve": [], "history": []}
        total = sum(config.steps for config in configs.values())
        before = 0
        for target, config in configs.items():
            if target not in state["networks"]:
                generator = generator_of(seed, "models", target, *tasks, device=self.device)
                ensemble = Ensemble(config, layout, len(tasks), target, generator)  # pyright: ignore[reportArgumentType]
                resumed = state.pop("running", None)
                start = 0
                if resumed is not None:
                    ensemble.load_state_dict(resumed["ensemble"])
                    generator.set_state(resumed["generator"])
                    start = resumed["step"]
                update = captured(ensemble, generator) if job.payload.get("cuda_graphs") else ensemble.update
                every = max(1, config.steps // _LOG_POINTS)
                history_every = max(1, config.steps // _SNAPSHOTS)
                for done in range(start + 1, config.steps + 1):
                    indices = sample_indices(len(tasks), config.batch_size, rows.shape[1], generator)
                    loss = update(gather_rows(rows, indices))["loss"]
                    if done % every == 0:
                        mean = float(loss.mean())
                        state["curve"].append({"target": target, "step": done, "loss": mean})
                        self.report(before + done, total, "steps", loss=mean)
                    if target == "reward" and done % history_every == 0:
                        then = select_stack(ensemble.network, range(ensemble.network.stack))
                        state["history"].append({"step": done, "reward": then.save()})
                    checkpoint.save_if_due(
                        lambda ensemble=ensemble, generator=generator, done=done: (
                            state
                            | {
                                "running": {
                                    "ensemble": ensemble.state_dict(),
                                    "generator": generator.get_state(),
                                    "step": done,
                                }
                            }
                        )
                    )
                state["networks"][target] = ensemble.network.save()
            before += config.steps
        save_tree(out.path / "models.safetensors", {"tasks": list(tasks), **state["networks"]})
        save_tree(out.path / "history.safetensors", {"tasks": list(tasks), "history": state["history"]})
        write_lines(out.path / "curves.jsonl", state["curve"])
        checkpoint.discard()
        return {"loss": state["curve"][-1]["loss"]} if state["curve"] else {}
