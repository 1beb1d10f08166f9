"""Teachers of several kinds as one stack."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from mbml.teachers.contract import Teachers


class Various(Teachers):
    """Teachers of several kinds, in any order: every kind answers for its own."""

    def __init__(self, parts: Sequence[Teachers], order: Tensor | None = None) -> None:
        """`order` `[K]`: which of all parts' teachers, one part after the other, stands where; as they come if None."""
        self.parts = tuple(parts)
        self.order = torch.arange(self.tasks) if order is None else order

    @property
    def tasks(self) -> int:
        """Number of teachers K."""
        return sum(part.tasks for part in self.parts)

    def _each(self, ask: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """What `ask(part, inputs of its teachers)` says of all parts, `[K, ...]`."""
        places = self.order.argsort().split([part.tasks for part in self.parts])
        said = [ask(part, *(each[mine] for each in inputs)) for part, mine in zip(self.parts, places, strict=True)]
        return torch.cat(said)[self.order.to(said[0].device)]

    def value(self, pair: Tensor) -> Tensor:
        """Q_i(s, a) `[K, n, 1]` for pairs `[K, n, d_s + d_a]`."""
        return self._each(lambda part, *given: part.value(*given), pair)

    def act(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """Every teacher's action by the acting rule of its kind."""
        return self._each(lambda part, *given: part.act(*given, generator), observation)

    def generate(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Every teacher's action for a latent, before `perturb`."""
        return self._each(lambda part, *given: part.generate(*given), observation, latent)

    def perturb(self, observation: Tensor, action: Tensor) -> Tensor:
        """Raw outputs of the perturbation networks, zeros where a kind has none."""
        return self._each(lambda part, *given: part.perturb(*given), observation, action)

    def parameters(self) -> list[Tensor]:
        """All weights and biases."""
        return [parameter for part in self.parts for parameter in part.parameters()]

    def to(self, device: torch.device | str) -> Self:
        """These teachers, moved to `device`."""
        for part in self.parts:
            part.to(device)
        return self

    def select(self, indices: Sequence[int] | Tensor) -> Any:
        """Copies of the teachers at `indices`, in that order: a stack of their kind where all are of one."""
        wanted = self.order[torch.as_tensor(indices, device=self.order.device)]
        chosen, places, first = [], [], 0
        for part in self.parts:
            mine = (wanted >= first) & (wanted < first + part.tasks)
            if mine.any():
                chosen.append(part.select(wanted[mine] - first))
                places.append(mine.nonzero().flatten())
            first += part.tasks
        return Various(chosen, torch.cat(places).argsort()) if len(chosen) > 1 else chosen[0]
