"""Networks and update steps of the plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with a ReLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def adam(*networks: nn.Module, learning_rate: float = 3e-4) -> torch.optim.Adam:
    """Adam with torch's defaults over all parameters of `networks`."""
    return torch.optim.Adam([p for network in networks for p in network.parameters()], lr=learning_rate)


def minimise(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def polyak(target: nn.Module, source: nn.Module, rate: float = 0.005) -> None:
    """`target <- (1 - rate) target + rate source`."""
    with torch.no_grad():
        for old, new in zip(target.parameters(), source.parameters(), strict=True):
            old.mul_(1 - rate).add_(rate * new)


def split_row(row: Tensor, observation_size: int, action_size: int) -> tuple[Tensor, ...]:
    """Observation, action, next observation, reward `[n, 1]` and termination `[n, 1]` of rows `[n, row]`."""
    return row.split([observation_size, action_size, observation_size, 1, 1], dim=-1)
