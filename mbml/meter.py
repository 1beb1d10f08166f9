"""Means of the losses of many updates, kept as tensors so that no update waits for a number to be read."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class RunningMeans:
    """Add up what every update returns; `take` gives the means since the last `take`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """One update's values; every update must have the same names and shapes."""
        # Sums that were loaded are on the CPU, wherever the values are.
        self.sums = {
            name: self.sums[name].to(value.device) + value if self.count else value for name, value in values.items()
        }
        self.count += 1

    def take(self) -> dict[str, Tensor]:
        """Means by name, empty if nothing was added; starts anew."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and count."""
        return {"sums": self.sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.sums, self.count = state["sums"], state["count"]
