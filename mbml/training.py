"""What a stage runs to its end, and the one loop: update, average the losses, every so often do what is due."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mbml.capture import captured
from mbml.learner import Learner, check_losses
from mbml.rows import Rows, sample_rows

_CHUNK = 50
"""Updates in one call of `advance`: between two calls a checkpoint may be made."""
_AnyLearner = TypeVar("_AnyLearner", bound=Learner)


class RunningMeans:
    """Add up what every update returns; `take` gives the means since the last `take`.

    They are kept as tensors, so that no update waits for a number to be read.
    """

    def __init__(self) -> None:
        self.state: dict[str, list[Any]] = {}
        """Sum and count by name."""

    def add(self, values: dict[str, Tensor]) -> None:
        """One update's values, of one shape for each name; an update may leave a name out."""
        for name, value in values.items():
            total, count = self.state.get(name, (None, 0))
            # A sum that was loaded is on the CPU, wherever the values are.
            self.state[name] = [value if total is None else total.to(value.device) + value, count + 1]

    def take(self) -> dict[str, Tensor]:
        """Means by name, each over the updates that had it; starts anew."""
        taken, self.state = self.state, {}
        return {name: total / count for name, (total, count) in taken.items()}


class Process(Protocol):
    """Long work in pieces, whose state between two of them is complete: resumed it gives the same bits."""

    @property
    def done(self) -> int:
        """How much of `total` is done."""
        ...

    @property
    def total(self) -> int:
        """All of it, in `unit`."""
        ...

    unit: str
    """Plural noun, such as "steps"."""

    def advance(self) -> Mapping[str, float | Tensor]:
        """Some work, well under a minute; the latest metrics, numbers or tensors of one element."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


def run(process: Process) -> None:
    """Advance to the end, where nobody asks for checkpoints or progress."""
    while process.done < process.total:
        process.advance()


def batches(rows: Rows, batch_size: int, generator: torch.Generator) -> Callable[[], tuple[Tensor]]:
    """A function that draws rows `[T, batch_size, row]`, uniformly with replacement, from each of `[T, N, row]`."""
    return lambda: (sample_rows(rows, batch_size, generator),)


def averaged(step: int, losses: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """One point of a curve: the mean of every loss over updates and tasks."""
    return [{"step": step, **{name: float(value.mean()) for name, value in losses.items()}}]


@dataclass(eq=False)
class Training(Generic[_AnyLearner]):
    """The updates of a learner up to `total`, with what is due on the way; a Process.

    Losses are averaged since the last point of `curve`. Before a point is added or a snapshot is made, losses and
    weights are checked: NotFinite ends the training there.
    """

    learner: _AnyLearner
    """What is trained; its `steps_done` is how far the training is."""
    draw: Callable[[], Sequence[Tensor]]
    """The arguments of one update; `tuple`, which makes none, for learners that draw their own rows."""
    total: int
    """Updates in all."""
    every: int
    """Updates between two points of the curve; the last update has one too."""
    on_due: Callable[[int, dict[str, Tensor]], list[dict[str, float]]] = averaged
    """Makes the points from the step and the mean losses, which may be per task `[T]`."""
    snapshot_every: int = 0
    """Updates between two snapshots, the last update being one; 0 makes none."""
    on_snapshot: Callable[[int], None] = lambda step: None
    """Hears the step, before a point of that step is made."""
    cuda_graphs: bool = False
    """Run an update on a GPU as one captured graph, where the learner allows it."""
    unit: str = "steps"

    def __post_init__(self) -> None:
        self._update = captured(self.learner) if self.cuda_graphs else self.learner.update
        self.curve: list[dict[str, float]] = []
        self._means, self._latest = RunningMeans(), {}

    @property
    def done(self) -> int:
        """Updates made."""
        return self.learner.steps_done

    def advance(self) -> Mapping[str, float | Tensor]:
        """Some updates, at most up to where something is due, and that; the latest mean losses."""
        periods = [period for period in (self.every, self.snapshot_every) if period]
        next_due = min(self.total, *((self.done // period + 1) * period for period in periods))
        for _ in range(min(_CHUNK, next_due - self.done)):
            self._means.add(self._update(*self.draw()))
        if self._due(self.snapshot_every):
            self.learner.check_finite()
            self.on_snapshot(self.done)
        if self._due(self.every):
            losses = self._means.take()
            check_losses(losses, self.done)
            self.learner.check_finite()
            self.curve += self.on_due(self.done, losses)
            self._latest = {name: value.mean() for name, value in losses.items()}
        return self._latest

    def _due(self, period: int) -> bool:
        return period > 0 and (self.done % period == 0 or self.done == self.total)

    def state_dict(self) -> dict[str, Any]:
        """Learner, curve, and the losses since its last point."""
        return {"learner": self.learner.state_dict(), "curve": self.curve, "means": self._means.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; with `cuda_graphs` before the first `advance` only."""
        self.learner.load_state_dict(state["learner"])
        self.curve = state["curve"]
        self._means.state = dict(state["means"])
