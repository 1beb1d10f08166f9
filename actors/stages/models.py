"""Reward ensembles, and next-state ensembles, of a stack of training tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from actors.artefacts import layout_of, load_rows, write_lines
from actors.stage import Process, Ref, Run, stage
from actors.today import Training
from mbml.capture import captured
from mbml.models import Ensemble, EnsembleConfig, Target
from mbml.nets import select_stack
from mbml.rows import RowLayout, Rows, gather_rows, resident, sample_indices
from mbml.seeding import generator_of
from mbml.serialise import save_tree

_LOG_POINTS = 50
_SNAPSHOTS = 10  # of the reward ensembles, for the error over training (Fig. 7)


@dataclass(frozen=True)
class Models:
    """The ensembles of `tasks`, by what they predict."""

    env: str
    tasks: tuple[int, ...]
    configs: Mapping[Target, EnsembleConfig]
    seed: int
    collect: tuple[Ref, ...]
    device: str = "cpu"
    cuda_graphs: bool = False


@stage(version=2)
def models(spec: Models, run: Run) -> dict[str, Any]:
    """Leaves `models.safetensors`, `curves.jsonl` and `history.safetensors`, the reward ensembles on the way."""
    rows = resident(load_rows(run.paths(spec.collect), spec.tasks), run.device)
    layout, tasks = layout_of(spec.env), list(spec.tasks)
    trainings = {
        target: _Ensembles(spec, target, config, layout, rows, run.device) for target, config in spec.configs.items()
    }
    run.train(Chain(list(trainings.values())))
    networks = {target: training.learner.network.save() for target, training in trainings.items()}
    save_tree(run.out / "models.safetensors", {"tasks": tasks, **networks})
    save_tree(run.out / "history.safetensors", {"tasks": tasks, "history": trainings["reward"].history})
    curve = [{"target": target, **row} for target, training in trainings.items() for row in training.curve]
    write_lines(run.out / "curves.jsonl", curve)
    return {"loss": curve[-1]["loss"]} if curve else {}


class _Ensembles(Training):
    """The training of one ensemble per task; the reward's are kept on the way."""

    def __init__(
        self, spec: Models, target: Target, config: EnsembleConfig, layout: RowLayout, rows: Rows, device: str
    ) -> None:
        number = len(spec.tasks)
        generator = generator_of(spec.seed, "models", target, *spec.tasks, device=device)
        ensemble = Ensemble(config, layout, number, target, generator)
        update = captured(ensemble, generator) if spec.cuda_graphs else ensemble.update
        self.history: list[dict[str, Any]] = []

        def step() -> dict[str, Tensor]:
            indices = sample_indices(number, config.batch_size, rows.shape[1], generator)
            return update(gather_rows(rows, indices))

        def keep(done: int) -> None:
            if target == "reward" and done % every == 0:
                then = select_stack(ensemble.network, range(ensemble.network.stack))
                self.history.append({"step": done, "reward": then.save()})

        every = max(1, config.steps // _SNAPSHOTS)
        super().__init__(ensemble, step, config.steps, every, keep, _LOG_POINTS, generator, average=False)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.history = state["history"]


class Chain:
    """Processes one after the other, as one."""

    def __init__(self, parts: Sequence[Process]) -> None:
        self.parts, self.unit = parts, parts[0].unit
        self.total = sum(part.total for part in parts)

    @property
    def done(self) -> int:
        """How much of all of them."""
        return sum(part.done for part in self.parts)

    def advance(self) -> Mapping[str, Any]:
        """Advance the first that is not at its end."""
        return next(part for part in self.parts if part.done < part.total).advance()

    def state_dict(self) -> dict[str, Any]:
        """That of every part."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
