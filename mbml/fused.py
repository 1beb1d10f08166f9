"""The tricks for speed, behind one door; each has a plain twin in the tests and a row in benchmarks/README.md.

A pass that keeps its hidden layers (`forward_trace`), so that a learner that knows the gradient of its loss needs no
autograd (`backward_trace`); and ensembles of one hidden layer as one product a task (`shared_scalars`,
`shared_squares`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mbml.products import affine, matmul

_relu_gradient = torch.ops.aten.threshold_backward


class Trace(NamedTuple):
    """What a pass leaves for its gradients: inputs `[T, B, in]` and hidden layers `[T, B, width]`."""

    inputs: Tensor
    hidden: list[Tensor]

    def rows(self, which: slice) -> "Trace":
        """That of some of the rows, for a gradient in their outputs only."""
        return Trace(self.inputs[:, which], [hidden[:, which] for hidden in self.hidden])


@torch.no_grad()
def forward_trace(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Trace]:
    """Outputs `[T, B, out]` of inputs `[T or a divisor, B, in]`, without a graph, and the trace for the gradients."""
    x = x.repeat(len(weights[0]) // len(x), 1, 1)
    trace = Trace(x, [])
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = affine(x, weight, bias).relu_()
        trace.hidden.append(x)
    return affine(x, weights[-1], biases[-1]), trace


@torch.no_grad()
def backward_trace(trace: Trace, gradient: Tensor, weights: Sequence[Tensor], into: Sequence[Tensor] = ()) -> Tensor:
    """Gradient `[T, B, in]` in the inputs of a sum whose gradient in the outputs is `gradient` `[T, B, out]`.

    Those of weights and biases are written `into` tensors of their shapes, all weights first, if there are any.
    """
    flow, layers = gradient, len(weights)
    for number in reversed(range(layers)):
        fed = trace.hidden[number - 1] if number else trace.inputs
        if into:
            matmul(fed.mT, flow, into[number])
            torch.sum(flow, -2, keepdim=True, out=into[layers + number])
            if not number:
                break
        flow = matmul(flow, weights[number].mT)
        if number:
            _relu_gradient.grad_input(flow, fed, 0, grad_input=flow)
    return flow


@torch.no_grad()
def shared_scalars(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Outputs `[T E, B, 1]` of one-hidden-layer networks, of which E in a row share each of the inputs `[T, B, in]`.

    What they share makes their hidden layers one product. Without a graph.
    """
    outputs = x.new_empty(len(x), x.shape[1], len(weights[0]) // len(x))
    buffer = _hidden_buffer(x, weights)
    grouped = _by_group(len(x), weights[0], biases[0], weights[1])
    for inputs, first, bias, second, output in zip(x, *grouped, outputs, strict=True):
        hidden = _joined_hidden(inputs, _joined(first, bias))
        torch.sum(torch.mul(hidden, second.squeeze(2), out=buffer), 2, out=output)
    return outputs.transpose(1, 2).reshape(len(weights[0]), x.shape[1], 1) + biases[1]


@torch.no_grad()
def shared_squares(
    x: Tensor, target: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Mean squared error `[T E]` of each network of `shared_scalars` for targets `[T, B, 1]`, and the gradients of
    their sum in weights and biases, in this order.

    With h the hidden layer, v its output weights and d the gradient in the output, the gradient in the first layer's
    weights is G v, where G = x' [h > 0] d. The bias is the weight of an input that is always 1. That in v is h' d,
    which is the sum over the inputs of W G: neither needs another pass over the hidden layers.
    """
    groups, rows, _ = x.shape
    slopes = x.new_empty(groups, rows, len(weights[0]) // groups)
    gradients = [torch.empty_like(p) for p in (*weights, *biases)]
    buffer = _hidden_buffer(x, weights)
    biased = torch.nn.functional.pad(x, (0, 1), value=1.0)
    grouped = _by_group(groups, weights[0], biases[0], weights[1], biases[1], *gradients[:3])
    for inputs, wanted, slope, *own in zip(biased, target, slopes, *grouped, strict=True):
        first, bias, second, last, to_first, to_second, to_bias = own
        joined, second = _joined(first, bias), second.squeeze(2)
        hidden = _joined_hidden(inputs[:, :-1], joined)
        torch.sum(torch.mul(hidden, second, out=buffer), 2, out=slope)
        slope.add_(last.view(-1)).sub_(wanted).mul_(2 / rows)
        _relu_gradient.grad_input(slope.unsqueeze(2).expand_as(hidden), hidden, 0, grad_input=buffer)
        gradient = matmul(inputs.t(), buffer.flatten(1)).view_as(joined)
        torch.mul(gradient[:-1].transpose(0, 1), second.unsqueeze(1), out=to_first)
        torch.mul(gradient[-1], second, out=to_bias.squeeze(1))
        torch.sum(gradient.mul_(joined), 0, out=to_second.squeeze(2))
    torch.sum(slopes, 1, out=gradients[3].view(groups, -1))
    return (slopes * (rows / 2)).square().mean(1).flatten(), gradients


def _by_group(groups: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tensor.unflatten(0, (groups, -1)).unbind() for tensor in tensors]


def _joined(weight: Tensor, bias: Tensor) -> Tensor:
    """Weights `[E, in, hidden]` and biases `[E, 1, hidden]` as `[in + 1, E, hidden]`: what one product needs."""
    return torch.cat([weight.transpose(0, 1), bias.transpose(0, 1)])


def _joined_hidden(inputs: Tensor, joined: Tensor) -> Tensor:
    """The hidden layers `[B, E, hidden]` of inputs `[B, in]`."""
    hidden = affine(inputs, joined[:-1].flatten(1), joined[-1:].flatten(1)).relu_()
    return hidden.unflatten(1, joined.shape[1:])


def _hidden_buffer(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """For one group's hidden layers; used for all of them, so that it stays in the cache."""
    return x.new_empty(x.shape[1], len(weights[0]) // len(x), weights[0].shape[2])
