"""Stacked networks: many small multilayer perceptrons of one shape, run side by side as batched matrix products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mbml.fused import Trace, backward_trace, forward_trace, perceptrons, worth_it
from mbml.products import affine

Initialisation = Literal["rlkit", "torch"]


class StackedMLP(nn.Module):
    """`stack` independent perceptrons with ReLU hidden layers and a linear output, as `[T, in, out]` weights.

    Maps `[T, B, in]` to `[T, B, out]`. T is whatever runs side by side: twin critics, tasks, ensemble members, or
    their products. An input with fewer members goes round: with T = 1 the whole stack shares it, with half of the
    stack (twin critics, all first ones before all second ones) both halves do.

    Initialisation (paper's code, section 0.2 of the specification): "rlkit" draws hidden weights from
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
        super().__init__()
        self.stack = stack
        self.sizes = tuple(sizes)
        device = generator.device
        weights, biases = [], []
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            is_output = layer == len(sizes) - 2
            weight = torch.empty(stack, fan_in, fan_out, device=device)
            bias = torch.empty(stack, 1, fan_out, device=device)
            if initialisation == "torch":
                bound = 1.0 / math.sqrt(fan_in)
                weight.uniform_(-bound, bound, generator=generator)
                bias.uniform_(-bound, bound, generator=generator)
            elif is_output:
                weight.uniform_(-output_scale, output_scale, generator=generator)
                bias.uniform_(-output_scale, output_scale, generator=generator)
            else:
                bound = 1.0 / math.sqrt(fan_out)
                weight.uniform_(-bound, bound, generator=generator)
                bias.fill_(0.1)
            weights.append(nn.Parameter(weight))
            biases.append(nn.Parameter(bias))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)
        self.layers = weights, biases
        """The same parameters in plain lists: running through a ParameterList costs as much as a small product."""
        self.gradients: list[Tensor] = []
        """Where `backward` writes, a tensor for each parameter; made at its first call if there are none."""

    def _apply(self, *arguments: Any, **options: Any) -> StackedMLP:
        """Behind `to` and its like, which may put other parameters in place of these."""
        super()._apply(*arguments, **options)
        self.layers = list(self.weights), list(self.biases)
        return self

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
        if worth_it(x, weights):
            return perceptrons(x, weights, biases)
        return batched_perceptrons(x, weights, biases)

    def trace(self, x: Tensor) -> tuple[Tensor, Trace]:
        """The outputs of `forward` without a graph, and what the two methods below need for the gradients."""
        return forward_trace(x, *self.layers)

    def backward(self, trace: Trace, gradient: Tensor) -> None:
        """Write the gradient of every parameter, given that of the loss in the outputs `[T, B, out]`."""
        if not self.gradients:
            self.gradients = [torch.empty_like(p) for p in self.parameters()]
        for p, place in zip((*self.layers[0], *self.layers[1]), self.gradients, strict=True):
            p.grad = place  # an optimiser that has cleared its gradients, or autograd, has put another one there
        backward_trace(trace, gradient, self.layers[0], self.gradients)

    def input_gradient(self, trace: Trace, gradient: Tensor, columns: slice = slice(None)) -> Tensor:
        """Gradient `[T, B, columns]` in each member's inputs, given that in the outputs `[T, B, out]`."""
        found = backward_trace(trace, gradient, self.layers[0], columns=columns)
        assert found is not None
        return found

    def save(self) -> dict[str, Any]:
        """Shapes and weights; `load` rebuilds the network from it."""
        return {"sizes": list(self.sizes), "weights": self.state_dict()}

    @classmethod
    def load(cls, state: dict[str, Any]) -> StackedMLP:
        """The network that `save` described."""
        stack = state["weights"]["weights.0"].shape[0]
        network = cls(stack, state["sizes"], generator=torch.Generator())
        network.load_state_dict(state["weights"])
        return network


def batched_perceptrons(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Outputs `[T, B, out]` of inputs `[T or a divisor, B, in]`: the plain form of `perceptrons`."""
    stack, last = weights[0].shape[0], len(weights) - 1
    if len(x) == 1:
        x = x.expand(stack, -1, -1)
    elif len(x) < stack:
        x = x.repeat(stack // len(x), 1, 1)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if stack == 1:
            # Squeezed, because the gradient of an index is a tensor of zeros with the part copied into it.
            x = affine(x.squeeze(0), weight.squeeze(0), bias.squeeze(0)).unsqueeze(0)
        else:
            x = affine(x, weight, bias)
        if layer < last:
            x = torch.relu_(x)
    return x


def select_stack(network: StackedMLP, indices: Sequence[int]) -> StackedMLP:
    """A new network holding copies of the chosen members of `network`, in the order given."""
    return _like(network, [p.detach()[list(indices)].clone() for p in network.parameters()])


def join_stacks(networks: Sequence[StackedMLP]) -> StackedMLP:
    """One network whose stack is the members of `networks` in order (all of one shape)."""
    parameters = zip(*(n.parameters() for n in networks), strict=True)
    return _like(networks[0], [torch.cat([p.detach() for p in group]) for group in parameters])


def _like(network: StackedMLP, parameters: list[Tensor]) -> StackedMLP:
    result = StackedMLP(parameters[0].shape[0], network.sizes, generator=torch.Generator()).to(parameters[0].device)
    with torch.no_grad():
        for target, value in zip(result.parameters(), parameters, strict=True):
            target.copy_(value)
    return result


def flatten_parameters(network: StackedMLP) -> nn.Parameter:
    """Move a network's parameters into one tensor, whose parts they and the gradients of its `backward` become.

    One kernel then serves all of them, in an optimiser and in averaging.
    """
    parameters = list(network.parameters())
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
    flat.requires_grad_(parameters[0].requires_grad)
    sizes = [p.numel() for p in parameters]
    for p, part in zip(parameters, flat.detach().split(sizes), strict=True):
        p.data = part.view_as(p)
    if flat.requires_grad:
        flat.grad = torch.zeros_like(flat)
        network.gradients = [part.view_as(p) for p, part in zip(parameters, flat.grad.split(sizes), strict=True)]
    return flat


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


def anneal(
    optimisers: Iterable[torch.optim.Optimizer], learning_rate: float, final_share: float, progress: float
) -> None:
    """Set the learning rate, which falls linearly to `final_share` of its start as `progress` goes from 0 to 1."""
    annealed = learning_rate * (1.0 - (1.0 - final_share) * min(1.0, progress))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = annealed


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step of `optimiser` on `loss`."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
