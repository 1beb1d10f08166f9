"""The measured limit of a row: nothing but the matrix products of one update, one after the other.

No activation, loss, optimiser, random number or gather: a program that makes the same products one by one with the
same library cannot be faster. There are two limits because torch has two libraries for single-precision products on a
CPU: the one behind `torch.mm`, and oneDNN, which a plain program does not get. Which one is faster depends on the
processor and on the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

Library = Literal["torch", "onednn"]


class Products:
    """Collects the products of an update and runs them; `layers` says how a network's layers are passed."""

    def __init__(self) -> None:
        self.flops = 0
        self._calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def layers(
        self, sizes: Sequence[int], rows: int, *, weights: bool = False, inputs: bool = False, times: int = 1
    ) -> Products:
        """A forward pass of `rows` rows, and the backward pass that reaches the weights and/or the network's input.

        Returns itself.
        """
        for _ in range(times):
            for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
                x, w = torch.randn(rows, fan_in), torch.randn(fan_in, fan_out)
                y = torch.randn(rows, fan_out)
                self._product(x, w, y)
                if weights:
                    self._product(x.t(), y, torch.empty(fan_in, fan_out))
                if inputs or (weights and layer > 0):
                    self._product(y, w.t(), torch.empty(rows, fan_in))
        return self

    def _product(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        self._calls.append((left, right, out))
        self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]

    def step(self, library: Library) -> Callable[[], None]:
        """All products, one after the other; `torch.mm` writes into memory that is ready, oneDNN into its own."""
        calls = self._calls
        if library == "torch":

            def run() -> None:
                for left, right, out in calls:
                    torch.mm(left, right, out=out)

            return run
        linear = torch.ops.mkldnn._linear_pointwise  # the one way to oneDNN's single-precision product from Python
        transposed = [(left, right.t()) for left, right, _ in calls]

        def run_onednn() -> None:
            for left, right in transposed:
                linear(left, right, None, "none", [], "")

        return run_onednn


def sac(observation_size: int, action_size: int, hidden: Sequence[int], batch_size: int, tasks: int = 1) -> Products:
    """One update of soft actor-critic per task."""
    policy = [observation_size, *hidden, 2 * action_size]
    critic = [observation_size + action_size, *hidden, 1]
    products = Products()
    for _ in range(tasks):
        products.layers(policy, batch_size, weights=True)
        products.layers(policy, batch_size)
        products.layers(critic, batch_size, times=2)  # targets
        products.layers(critic, batch_size, weights=True, times=2)
        products.layers(critic, batch_size, inputs=True, times=2)  # policy loss
    return products


def bcq(
    observation_size: int,
    action_size: int,
    hidden: Sequence[int],
    vae_hidden: Sequence[int],
    batch_size: int,
    candidates: int,
) -> Products:
    """One iteration of BCQ."""
    pair, latent, many = observation_size + action_size, 2 * action_size, batch_size * candidates
    actor, critic = [pair, *hidden, action_size], [pair, *hidden, 1]
    encoder = [pair, *vae_hidden, 2 * latent]
    decoder = [observation_size + latent, *vae_hidden, action_size]
    products = Products()
    products.layers(encoder, batch_size, weights=True).layers(decoder, batch_size, weights=True, inputs=True)
    products.layers(decoder, many).layers(actor, many).layers(critic, many, times=2)
    products.layers(critic, batch_size, weights=True, times=2)
    products.layers(decoder, batch_size).layers(actor, batch_size, weights=True)
    return products.layers(critic, batch_size, inputs=True)


def ensembles(
    observation_size: int, action_size: int, hidden: Sequence[int], batch_size: int, tasks: int, members: int
) -> Products:
    """One step of every member of every task's ensemble."""
    sizes = [observation_size + action_size, *hidden, 1]
    return Products().layers(sizes, batch_size, weights=True, times=tasks * members)


def distillation(
    observation_size: int,
    action_size: int,
    width: int,
    depths: Sequence[int],
    tasks: int,
    context_size: int,
    batch_size: int,
    eligible: float,
) -> Products:
    """One step of distillation with every transition encoded once; the teachers have the paper's BCQ networks."""
    s, a, z = observation_size, action_size, 20
    relabelled = round(eligible * tasks * (tasks - 1) * context_size)
    rows = tasks * batch_size
    value, decoder, perturbation = ([width] * depth for depth in depths)
    products = Products()
    products.layers([2 * s + a + 1, 200, 200, 200, 2 * z], tasks * context_size + relabelled, weights=True)
    products.layers([s + a + z, *value, 1], rows, weights=True, inputs=True)
    products.layers([s + 2 * a + z, *decoder, a], rows, weights=True)
    products.layers([s + a + z, *perturbation, a], rows, weights=True)
    for sizes in ([s + a, 400, 300, 1], [s + 2 * a, 750, 750, a], [s + a, 400, 300, a]):
        products.layers(sizes, batch_size, times=tasks)
    return products
