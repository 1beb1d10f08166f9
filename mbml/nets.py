"""Stacked networks: many small multilayer perceptrons of one shape, run side by side as batched matrix products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mbml.fused import Trace, backward_trace, forward_trace
from mbml.products import affine

Initialisation = Literal["rlkit", "torch"]


class StackedMLP(nn.Module):
    """`stack` independent perceptrons with ReLU hidden layers and a linear output, as `[T, in, out]` weights.

    Maps `[T, B, in]` to `[T, B, out]`. T is whatever runs side by side: twin critics, tasks, ensemble members, or
    their products. An input with fewer members goes round: with T = 1 the whole stack shares it, with half of the
    stack (twin critics, all first ones before all second ones) both halves do.

    Initialisation (the authors' code): "rlkit" draws hidden weights from
    U(-1/sqrt(fan-out), 1/sqrt(fan-out)) with bias 0.1 and the output layer from U(-output_scale, output_scale);
    "torch" is the default of `nn.Linear`. The network lives on the device of the generator.
    """

    def __init__(
        self,
        stack: int,
        sizes: Sequence[int],
        *,
        generator: torch.Generator,
        initialisation: Initialisation = "rlkit",
        output_scale: float = 0.003,
    ) -> None:
        device = generator.device
        weights, biases = [], []
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            hidden = initialisation == "rlkit" and layer < len(sizes) - 2
            bound = 1.0 / math.sqrt(fan_out) if hidden else output_scale
            if initialisation == "torch":
                bound = 1.0 / math.sqrt(fan_in)
            weight, bias = (torch.empty(stack, rows, fan_out, device=device) for rows in (fan_in, 1))
            weights.append(weight.uniform_(-bound, bound, generator=generator))
            biases.append(bias.fill_(0.1) if hidden else bias.uniform_(-bound, bound, generator=generator))
        super().__init__()
        self._hold(weights, biases)

    @classmethod
    def of(cls, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> StackedMLP:
        """The network of weights `[T, in, out]` and biases `[T, 1, out]`, which are not copied."""
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._hold(weights, biases)
        return network

    def _hold(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self.stack = len(weights[0])
        self.sizes = (weights[0].shape[1], *(weight.shape[2] for weight in weights))
        self.weights, self.biases = (nn.ParameterList(nn.Parameter(t) for t in part) for part in (weights, biases))

    @property
    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases; from the dicts of their lists, which takes a tenth of running through those."""
        weights, biases = self.weights._parameters, self.biases._parameters
        return list(weights.values()), list(biases.values())  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor, *, frozen: bool = False, first: int | None = None) -> Tensor:
        """Map `x` `[T or a divisor, B, in]` to `[T, B, out]`.

        With `frozen`, gradients reach `x` but not the parameters; with `first`, only the first so many members run.
        """
        stack = first or self.stack
        weights, biases = self.layers
        if frozen:
            weights, biases = [w.detach() for w in weights], [b.detach() for b in biases]
        if stack < self.stack:
            weights, biases = [w[:stack] for w in weights], [b[:stack] for b in biases]
        if len(x) == 1:
            x = x.expand(stack, -1, -1)
        elif len(x) < stack:
            x = x.repeat(stack // len(x), 1, 1)
        alone = stack == 1
        # Squeezed, because the gradient of an index is a tensor of zeros with the part copied into it; and for all
        # layers, because that of a ReLU in the place of a view is copied three times.
        x = x.squeeze(0) if alone else x
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = affine(x, weight.squeeze(0), bias.squeeze(0)) if alone else affine(x, weight, bias)
            if layer < len(weights) - 1:
                x = torch.relu_(x)
        return x.unsqueeze(0) if alone else x

    def trace(self, x: Tensor) -> tuple[Tensor, Trace]:
        """The outputs of `forward` without a graph, and what the two methods below need for the gradients."""
        return forward_trace(x, *self.layers)

    def backward(self, trace: Trace, gradient: Tensor) -> None:
        """Write the gradient of every parameter, given that of the loss in the outputs `[T, B, out]`."""
        weights, biases = self.layers
        for p in (*weights, *biases):
            if p.grad is None:
                p.grad = torch.empty_like(p)
        backward_trace(trace, gradient, weights, [p.grad for p in (*weights, *biases) if p.grad is not None])

    def input_gradient(self, trace: Trace, gradient: Tensor, columns: slice = slice(None)) -> Tensor:
        """Gradient `[T, B, columns]` in each member's inputs, given that in the outputs `[T, B, out]`."""
        return backward_trace(trace, gradient, self.layers[0])[..., columns]

    def save(self) -> dict[str, Any]:
        """Shapes and weights; `load` rebuilds the network from it."""
        return {"sizes": list(self.sizes), "weights": self.state_dict()}

    @classmethod
    def load(cls, state: dict[str, Any]) -> StackedMLP:
        """The network that `save` described, on copies of its tensors."""
        saved, layers = state["weights"], range(len(state["sizes"]) - 1)
        return cls.of(*([saved[f"{kind}.{layer}"].clone() for layer in layers] for kind in ("weights", "biases")))


_CONSTANT = 1e-6
"""Standard deviation up to which a column counts as constant."""


class Standardiser(nn.Module):
    """Maps `[..., d]` to mean 0 and standard deviation 1 of what it was fitted to; the identity before that."""

    shift: Tensor
    scale: Tensor

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(size, device=device))
        self.register_buffer("scale", torch.ones(size, device=device))

    def fit(self, values: Tensor) -> None:
        """Take over mean and standard deviation of `values` `[n, d]`; a constant column is only shifted."""
        deviation = values.std(0)
        self.shift.copy_(values.mean(0))
        self.scale.copy_(torch.where(deviation > _CONSTANT, deviation, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise `x` `[..., d]`."""
        return (x - self.shift) / self.scale

    def absorbed(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """First-layer weights `[T, in, out]` and biases `[T, 1, out]` that do to x what those given do to the first d
        inputs standardised."""
        size = len(self.scale)
        scaled = weight[:, :size] / self.scale.unsqueeze(1)
        return torch.cat([scaled, weight[:, size:]], 1), bias - (self.shift @ scaled).unsqueeze(1)


def select_stack(network: StackedMLP, indices: Sequence[int] | Tensor) -> StackedMLP:
    """A new network holding copies of the chosen members of `network`, in the order given."""
    chosen = indices if isinstance(indices, Tensor) else list(indices)
    return StackedMLP.of(*([p.detach()[chosen] for p in part] for part in network.layers))


def part_of(network: StackedMLP, start: int, length: int) -> StackedMLP:
    """So many members from `start` on, as a network of their own in the same memory."""
    part = StackedMLP.of(*([p.detach().narrow(0, start, length) for p in part] for part in network.layers))
    return part.requires_grad_(network.weights[0].requires_grad)


def join_stacks(networks: Sequence[StackedMLP]) -> StackedMLP:
    """One network whose stack is the members of `networks` in order (all of one shape)."""
    weights, biases = zip(*(network.layers for network in networks), strict=True)
    return StackedMLP.of(
        *([torch.cat(group).detach() for group in zip(*part, strict=True)] for part in (weights, biases))
    )


def soft_update(targets: nn.Module, online: nn.Module, rate: float) -> None:
    """Polyak averaging `target <- (1 - rate) target + rate online`, in place."""
    with torch.no_grad():
        for target, source in zip(targets.parameters(), online.parameters(), strict=True):
            target.lerp_(source, rate)


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Adam with the defaults of the paper (betas 0.9, 0.999; eps 1e-8; no decay), one fused kernel per tensor."""
    listed = list(parameters)
    # On a GPU a captured graph may hold the step, whose count is then part of it.
    return torch.optim.Adam(listed, lr=learning_rate, fused=True, capturable=listed[0].is_cuda)


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step of `optimiser` on `loss`."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
