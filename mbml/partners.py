"""Which other tasks every task's transitions are relabelled for, where there are too many tasks for all of them."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Ring:
    """K tasks in a circle, each labelled for its `partners` P nearest on both sides, one ahead before one behind.

    So every task has P others' labels, is a label of P others, and some tasks that follow each other are all
    partners of one another, however many tasks there are. A random order makes partners a random choice.
    """

    def __init__(self, order: Tensor, partners: int) -> None:
        """`order` `[K]` are the tasks as they follow each other; there must be more than P + 1."""
        if not 0 < partners < len(order) - 1:
            raise ValueError(f"There are {partners} partners of {len(order)} tasks; give 1 to {len(order) - 2}.")
        self.order, self.partners = order, partners

    @cached_property
    def _places(self) -> Tensor:
        return self.order.argsort()

    def partner(self, source: Tensor, number: Tensor) -> Tensor:
        """The partner of this `number`, from 0 to below P, of tasks `source`; shapes broadcast."""
        away = torch.div(number, 2, rounding_mode="floor") + 1
        away = torch.where(number % 2 == 0, away, -away)
        return self.order[(self._places[source] + away) % len(self.order)]

    def number(self, label: Tensor, source: Tensor) -> Tensor:
        """Which partner of tasks `source` the tasks `label` are; P or more, or negative, where they are none."""
        total = len(self.order)
        ahead = (self._places[label] - self._places[source]) % total
        return torch.where(2 * ahead <= total, 2 * ahead - 2, 2 * (total - ahead) - 1)

    def knows(self, label: Tensor, source: Tensor) -> Tensor:
        """Whether transitions of tasks `source` have labels for tasks `label`; shapes broadcast."""
        number = self.number(label, source)
        return (number >= 0) & (number < self.partners)

    def window(self, size: int, generator: torch.Generator) -> Tensor:
        """So many tasks `[size]` that follow each other, from a uniformly random one on: every task is as likely."""
        start = torch.randint(len(self.order), (1,), generator=generator, device=generator.device)
        return self.order[(start + torch.arange(size, device=self.order.device)) % len(self.order)]


def some_tasks(tasks: int, wanted: int, generator: torch.Generator) -> Tensor | None:
    """The tasks `[wanted]` of a step, a uniformly random subset; None stands for all, where there are no more or
    `wanted` is 0, and nothing is drawn."""
    if not 0 < wanted < tasks:
        return None
    return torch.randperm(tasks, generator=generator, device=generator.device)[:wanted]


def evenly(number: int, most: int) -> list[int]:
    """At most so many of the numbers below `number`, evenly spread."""
    shown = min(number, most)
    return [place * number // shown for place in range(shown)]
