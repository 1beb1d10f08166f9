"""What every teacher is: a learner of T tasks side by side, and the frozen policies that it leaves."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from mbml.learner import Learner
from mbml.nets import StackedMLP, join_stacks, select_stack
from mbml.registry import Entry
from mbml.rows import RowLayout
from mbml.settings import Count, Positive, Share, Widths, later


@dataclass(eq=False)
class Teachers(ABC):
    """K frozen policies, stacked: what distillation, evaluation and the references ask of them.

    Fields are stacked networks and JSON scalars; so files, devices and joining exist once.
    """

    critic: StackedMLP
    """Q_i(s, a) of every task."""
    kind: str = field(kw_only=True)
    """Its name in TEACHERS, which stands in the file."""

    def __post_init__(self) -> None:
        for network in self.networks().values():
            network.requires_grad_(False)

    @property
    def tasks(self) -> int:
        """Number of teachers K."""
        return self.critic.stack

    def value(self, pair: Tensor) -> Tensor:
        """Q_i(s, a) `[K, n, 1]` for pairs `[K, n, d_s + d_a]`."""
        return self.critic(pair)

    @abstractmethod
    def act(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """The acting rule: every teacher's action `[K, n, d_a]` for its own observations `[K, n, d_s]`; both are on
        the CPU, the networks on the device of the generator."""

    @property
    def candidates(self) -> int:
        """Latents that one action takes when acting; 0: none."""
        return 0

    def decide(self, observation: Tensor, latent: Tensor) -> Tensor:
        """The same by given normal noise `[K, n, candidates, 2 d_a]`; what it generates, where that takes none."""
        return self.generate(observation, latent)

    @abstractmethod
    def generate(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Actions `[K, n, d_a]` for observations `[K, n, d_s]` and latents `[K, n, 2 d_a]`, before `perturb`."""

    def perturb(self, observation: Tensor, action: Tensor) -> Tensor:
        """Raw output `[K, n, d_a]` of the perturbation network for a generated action; zeros where there is none."""
        return torch.zeros_like(action)

    def networks(self) -> dict[str, StackedMLP]:
        """The stacked networks by name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, StackedMLP)}

    def shapes(self) -> dict[str, Any]:
        """Its fields, of a network the sizes: what `mbml.teachers.of_shapes` makes others like these from."""
        return {n: list(part.sizes) if isinstance(part, StackedMLP) else part for n, part in vars(self).items()}

    def parameters(self) -> list[Tensor]:
        """All weights and biases, first axis the teachers."""
        return [p for network in self.networks().values() for p in network.parameters()]

    def to(self, device: torch.device | str) -> Self:
        """These teachers, moved to `device`."""
        for network in self.networks().values():
            network.to(device)
        return self

    @classmethod
    def join(cls, parts: Sequence["Teachers"]) -> "Teachers":
        """All teachers of several stacks of one kind, in order."""
        names = parts[0].networks()
        joined: dict[str, Any] = {name: join_stacks([part.networks()[name] for part in parts]) for name in names}
        return replace(parts[0], **joined)

    def select(self, indices: Sequence[int] | Tensor) -> Self:
        """Copies of the teachers at `indices`, in that order; one may be named twice."""
        chosen: dict[str, Any] = {name: select_stack(part, indices) for name, part in self.networks().items()}
        return replace(self, **chosen)

    def state_dict(self) -> dict[str, Any]:
        """Kind, settings, weights and shapes; `load` rebuilds the teachers from it."""
        return {name: part.save() if isinstance(part, StackedMLP) else part for name, part in vars(self).items()}

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Self:
        """Teachers of this class from `state_dict`; `mbml.teachers.load` finds the class by the kind."""
        parts: dict[str, Any] = {n: StackedMLP.load(p) if isinstance(p, dict) else p for n, p in state.items()}
        return cls(**parts)


@dataclass(eq=False)
class DeterministicTeachers(Teachers):
    """Teachers that act by a_i = tanh pi_i(s), whatever the latent."""

    policy: StackedMLP

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """tanh pi_i(s); draws nothing."""
        return torch.tanh(self.policy(observation.to(generator.device))).cpu()

    def generate(self, observation: Tensor, latent: Tensor) -> Tensor:
        """tanh pi_i(s)."""
        return torch.tanh(self.policy(observation))


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """What learners of one task's batch have in common; BCQ's authors have sizes of their own."""

    hidden: Widths = (256, 256)
    """Widths of every network's hidden layers."""
    batch_size: Count = 256
    """Transitions per task in one update."""
    learning_rate: Positive = 3e-4
    """Adam learning rate of all networks."""
    discount: Share = 0.99
    """Discount factor."""
    tau: Share = 0.005
    """Polyak rate of the target networks."""
    foreign_share: Share = later(0.0)
    """Share of a batch that are other tasks' transitions with this task's labels (mbml/sharing.py)."""


PRESETS = {
    "smoke": {"hidden": (16, 16), "batch_size": 16},
    "laptop": {"hidden": (128, 128), "batch_size": 128, "learning_rate": 1e-3, "tau": 0.01},
}
"""Of every teacher, beside what is its own."""


class TeacherLearner(Learner):
    """T learners side by side on the device of the generator, which share nothing but the batched products.

    Twin critics are stacked `[2T, ...]`: all first critics, then all second.
    """

    def __init__(self, config: Any, layout: RowLayout, tasks: int, generator: torch.Generator) -> None:
        """`config` is of the entry's class and has at least `batch_size`, transitions per task in one update."""
        self.config, self.layout, self.tasks, self.generator = config, layout, tasks, generator

    def network(self, *sizes: int, copies: int = 1) -> StackedMLP:
        """New networks of `sizes`, so many `copies` for every task."""
        return StackedMLP(copies * self.tasks, sizes, generator=self.generator, initialisation="torch")

    def frozen(self, network: StackedMLP, members: int = 0) -> StackedMLP:
        """A copy of `network`, or of its first members, that no gradient reaches: a target, or a teacher's."""
        return select_stack(network, range(members or network.stack)).requires_grad_(False)

    @abstractmethod
    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One update on rows `[T, batch, row]`; losses per task `[T]`."""

    @abstractmethod
    def teachers(self) -> Teachers:
        """Frozen copies of what acts now."""


def twin_error(values: Tensor, target: Tensor) -> Tensor:
    """Loss per task `[T]` of twin critics: mean squared errors of their values `[2T, n, 1]`, added up."""
    return (values.unflatten(0, (2, -1)) - target).square().mean((2, 3)).sum(0)


@dataclass(frozen=True)
class TeacherEntry(Entry):
    """A kind of teacher; `make(config, layout, tasks, generator)` is its learner."""

    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: PRESETS)
    policies: type[Teachers] = field(default=DeterministicTeachers, kw_only=True)
    """What its files hold."""
