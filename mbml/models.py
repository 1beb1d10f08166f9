"""Reward and next-state ensembles, stacked over tasks and members, and their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mbml.fused import shared_scalars, shared_squares
from mbml.learner import Learner
from mbml.nets import StackedMLP, adam, join_stacks, select_stack, step
from mbml.rows import RowLayout, Rows
from mbml.seeding import generator_of
from mbml.settings import Count, Positive, Widths
from mbml.training import Training, batches

Target = Literal["reward", "next_observation"]
_POINTS = 50
"""Of a curve."""
_SNAPSHOTS = 10
"""Of the reward ensembles, for their labels' error over training (paper, Fig. 7)."""


@dataclass(frozen=True)
class EnsembleConfig:
    """An ensemble of regressors per task; the defaults are the authors' reward ensemble."""

    members: Count = 20
    """Networks per task."""
    hidden: Widths = (128,)
    """Widths of each member's hidden layers."""
    steps: Count = 4_000
    """Gradient steps."""
    batch_size: Count = 128
    """Transitions per task in one step; all members of a task see the same ones."""
    learning_rate: Positive = 3e-4
    """Adam learning rate."""


class Ensemble(Learner):
    """E networks `(s, a) -> target` for each of T tasks; diversity comes from independent initialisation alone."""

    def __init__(
        self, config: EnsembleConfig, layout: RowLayout, tasks: int, target: Target, generator: torch.Generator
    ) -> None:
        self.config, self.layout, self.tasks, self.generator = config, layout, tasks, generator
        self.target: Target = target
        output = 1 if target == "reward" else layout.observation_size
        sizes = [layout.pair_size, *config.hidden, output]
        self.network = StackedMLP(tasks * config.members, sizes, generator=generator)
        self.optimiser = adam(self.network.parameters(), config.learning_rate)

    @torch.no_grad()
    def predict(self, pair: Tensor) -> Tensor:
        """Every member's prediction `[T, E, n, out]` for pairs `[T, n, d_s + d_a]`."""
        if self._shares_hidden:
            shared = pair.expand(self.tasks, -1, -1)
            return self._by_task(shared_scalars(shared, *self.network.layers))
        return self._run(pair)

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One step on rows `[T, batch, row]`: squared error, mean over batch and dimensions, summed over members."""
        batch, pair = self.layout.split(rows), self.layout.pair(rows)
        target = batch.reward if self.target == "reward" else batch.next_observation
        if self._shares_hidden:
            loss, gradients = shared_squares(pair, target, *self.network.layers)
            for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self.optimiser.step()
            return self.counted(loss=self._by_task(loss).mean(1))
        loss = (self._run(pair) - target.unsqueeze(1)).square().mean((2, 3))
        step(self.optimiser, loss.sum())
        return self.counted(loss=loss.mean(1))

    @property
    def _shares_hidden(self) -> bool:
        return self.network.sizes[2:] == (1,)

    def _run(self, pair: Tensor) -> Tensor:
        members = self.config.members
        return self._by_task(self.network(pair.unsqueeze(1).expand(-1, members, -1, -1).flatten(0, 1)))

    def _by_task(self, values: Tensor) -> Tensor:
        """Values `[T E, ...]` as `[T, E, ...]`."""
        return values.unflatten(0, (self.tasks, self.config.members))

    @torch.no_grad()
    def mean_and_std(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over members `[T, n, out]` and their `spread` `[T, n]` for pairs `[T, n, d_s + d_a]`."""
        predictions = self.predict(pair)
        return predictions.mean(1), spread(predictions)

    def select(self, tasks: Tensor) -> Ensemble:
        """Copies of the ensembles of `tasks` `[n]`, in that order; to predict with."""
        members = tasks.unsqueeze(1) * self.config.members + torch.arange(self.config.members)
        chosen = select_stack(self.network, members.flatten())
        return self.of_networks(self.config, self.layout, self.target, [chosen])

    @classmethod
    def of_networks(
        cls, config: EnsembleConfig, layout: RowLayout, target: Target, networks: Sequence[StackedMLP]
    ) -> Ensemble:
        """The trained ensembles of several stacks, in order."""
        tasks = sum(network.stack for network in networks) // config.members
        ensemble = cls(config, layout, 0, target, torch.Generator())
        ensemble.tasks, ensemble.network = tasks, join_stacks(networks)
        return ensemble


def spread(predictions: Tensor) -> Tensor:
    """Uncertainty `[T, n]` of what E members predict, `[T, E, n, out]`.

    The unbiased standard deviation over members, averaged over output dimensions; one member alone has none: 0.
    """
    if predictions.shape[1] == 1:
        return torch.zeros_like(predictions[:, 0, :, 0])
    return predictions.std(1).mean(-1)


class EnsembleTraining:
    """The training of T tasks' ensembles on rows `[T, N, row]`, one target after the other; a Process."""

    unit = "steps"

    def __init__(
        self,
        configs: Mapping[Target, EnsembleConfig],
        layout: RowLayout,
        rows: Rows,
        tasks: Sequence[int],
        seed: int,
        device: torch.device | str = "cpu",
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """`tasks` are the indices of the tasks; learners and `rows` are on `device`."""
        self.history: list[dict[str, Any]] = []
        self._parts: dict[Target, Training[Ensemble]] = {}
        for target, config in configs.items():
            generator = generator_of(seed, "models", target, *tasks, device=device)
            self._parts[target] = Training(
                Ensemble(config, layout, len(tasks), target, generator),
                batches(rows, config.batch_size, generator),
                config.steps,
                max(1, config.steps // _POINTS),
                snapshot_every=max(1, config.steps // _SNAPSHOTS) if target == "reward" else 0,
                on_snapshot=self._remember,
                cuda_graphs=cuda_graphs,
            )

    def _remember(self, step: int) -> None:
        network = self.ensembles["reward"].network
        self.history.append({"step": step, "reward": select_stack(network, range(network.stack)).save()})

    @property
    def ensembles(self) -> dict[Target, Ensemble]:
        """By what they predict."""
        return {target: part.learner for target, part in self._parts.items()}

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Mean loss over tasks and members since the point before, by target and step."""
        return [{"target": target, **point} for target, part in self._parts.items() for point in part.curve]

    @property
    def done(self) -> int:
        """Steps made, of all targets."""
        return sum(part.done for part in self._parts.values())

    @property
    def total(self) -> int:
        """Steps of all targets."""
        return sum(part.total for part in self._parts.values())

    def advance(self) -> Mapping[str, float | Tensor]:
        """Some steps of the first target that is not at its end."""
        return next(part for part in self._parts.values() if part.done < part.total).advance()

    def state_dict(self) -> dict[str, Any]:
        """That of every target's training, and the history."""
        return {"history": self.history} | {target: part.state_dict() for target, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.history = state["history"]
        for target, part in self._parts.items():
            part.load_state_dict(state[target])
