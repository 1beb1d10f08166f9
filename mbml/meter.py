"""Means of the losses of many updates, kept as tensors so that no update waits for a number to be read."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class RunningMeans:
    """Add up what every update returns; `take` gives the means since the last `take`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """One update's values, of one shape for each name; an update may leave a name out."""
        for name, value in values.items():
            # Sums that were loaded are on the CPU, wherever the values are.
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, Tensor]:
        """Means by name, each over the updates that had it; starts anew."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
