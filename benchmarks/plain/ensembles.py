"""Reward ensembles, the textbook way: one network and one optimiser per member, one member after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.plain.nets import adam, minimise, mlp


class PlainEnsembles:
    """`update` takes rows `[T, n, row]`; all members of a task see the same ones."""

    def __init__(self, observation_size: int, action_size: int, hidden: list[int], tasks: int, members: int) -> None:
        self.pair_size = observation_size + action_size
        self.members = [[mlp([self.pair_size, *hidden, 1]) for _ in range(members)] for _ in range(tasks)]
        self.optimisers = [[adam(member) for member in task] for task in self.members]

    def update(self, rows: Tensor) -> Tensor:
        """One step of every member; mean loss per task `[T]`."""
        losses = []
        for task, (networks, optimisers) in enumerate(zip(self.members, self.optimisers, strict=True)):
            pair, reward = rows[task, :, : self.pair_size], rows[task, :, -2:-1]
            found = []
            for network, optimiser in zip(networks, optimisers, strict=True):
                loss = torch.nn.functional.mse_loss(network(pair), reward)
                minimise(optimiser, loss)
                found.append(loss.detach())
            losses.append(torch.stack(found).mean())
        return torch.stack(losses)
