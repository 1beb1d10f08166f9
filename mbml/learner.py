"""What every learner has in common: its state, its learning rate, its count of updates, and that it stays finite."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbml.settings import ConfigError, Count, Positive, Share

_MOST_SNAPSHOTS = 10_000
_Part = nn.Module | nn.Parameter | torch.optim.Optimizer | torch.Generator


class NotFinite(ValueError):
    """A loss or a weight that is NaN or infinite; the message names step and term."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long a multi-task learner learns, and how fast."""

    steps: Count = 100_000
    """Gradient steps."""
    snapshot_every: Count = 10_000
    """Steps between snapshots that are evaluated."""
    learning_rate: Positive = 3e-4
    """Adam learning rate of all networks."""
    final_learning_rate: Share = 1.0
    """Share of the learning rate that is left at the last step, reached linearly; 1 keeps it constant, as the paper."""

    @property
    def snapshots(self) -> list[int]:
        """The steps of all of them; the last step is one. Raises ConfigError for more than can be evaluated."""
        if self.steps > _MOST_SNAPSHOTS * self.snapshot_every:
            asked = f"snapshots every {self.snapshot_every:,} of {self.steps:,} steps"
            raise ConfigError(f"A learner is to leave {asked}; more than {_MOST_SNAPSHOTS:,} are too many.")
        return [*range(self.snapshot_every, self.steps, self.snapshot_every), self.steps]


class Learner(ABC):
    """Networks and how one update changes them.

    Every public attribute that is a network, a parameter, an optimiser or a generator belongs to the state, as does
    `steps_done`; what begins with an underscore is a view of those, or somebody else's. So saving, loading,
    annealing and the checks of the contract (tests/mbml/test_contract.py) exist once.
    """

    config: Any
    """Frozen dataclass. `steps`, `learning_rate` and `final_learning_rate`, where it has them, are the annealing."""
    steps_done: int = 0
    constant: bool = True
    """Whether all updates are the same operations on the same shapes, so that a GPU may run them as one graph."""

    @abstractmethod
    def update(self, *arguments: Any) -> dict[str, Tensor]:
        """One update; its losses by name, detached. Nothing is read back from the device."""

    def counted(self, **losses: Tensor) -> dict[str, Tensor]:
        """Count one more update, and give its losses, detached."""
        self.steps_done += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def parts(self) -> dict[str, _Part]:
        """Networks, parameters, optimisers and generators by the name of their attribute."""
        named = vars(self).items()
        return {name: part for name, part in named if isinstance(part, _Part) and not name.startswith("_")}

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """All optimisers."""
        return [part for part in self.parts().values() if isinstance(part, torch.optim.Optimizer)]

    def generators(self) -> list[torch.Generator]:
        """All generators that an update draws from."""
        return [part for part in self.parts().values() if isinstance(part, torch.Generator)]

    def anneal(self) -> None:
        """Set every learning rate: it falls linearly to `final_learning_rate` of its start at the last step."""
        config = self.config
        progress = min(1.0, self.steps_done / config.steps)
        rate = config.learning_rate * (1.0 - (1.0 - config.final_learning_rate) * progress)
        for optimiser in self.optimisers():
            for group in optimiser.param_groups:
                group["lr"] = rate

    def check_finite(self) -> None:
        """Raise NotFinite if a weight is not finite: such networks never become an artefact."""
        for name, part in self.parts().items():
            tensors = part.parameters() if isinstance(part, nn.Module) else [part]
            if any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in tensors):
                raise NotFinite(f"weights of {name} are not finite after {self.steps_done} updates; {_REMEDY}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that an update reads or changes. The tensors are the learner's own, not copies."""
        state: dict[str, Any] = {"steps_done": self.steps_done}
        for name, part in self.parts().items():
            match part:
                case torch.Generator():
                    state[name] = part.get_state()
                case nn.Parameter():
                    state[name] = part.detach()
                case _:
                    state[name] = part.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.steps_done = state["steps_done"]
        for name, part in self.parts().items():
            match part:
                case torch.Generator():
                    part.set_state(state[name])
                case nn.Parameter():
                    with torch.no_grad():
                        part.copy_(state[name])
                case _:
                    part.load_state_dict(state[name])


_REMEDY = "a smaller learning rate, or data on another scale, may help."


def check_losses(losses: Mapping[str, Tensor], step: int) -> None:
    """Raise NotFinite, naming step and term, if a loss is NaN or infinite."""
    for name, value in losses.items():
        if not bool(value.isfinite().all()):
            raise NotFinite(f"{name} is not finite within the updates up to {step}; {_REMEDY}")
