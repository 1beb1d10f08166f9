"""A stack of ReLU perceptrons as one differentiable function, for products too large to gain from batching.

Member after member, so that what one layer leaves is still in the cache when the next one, or its gradient, reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LARGE = 1 << 22
"""Multiplications from which oneDNN's product is faster than the one behind `torch.mm`; a smaller one pays more for
the call."""
_NARROW = 8
"""Width below which oneDNN is slower, whatever the size."""
_ROWS = 16
"""Many rows are padded to a multiple of this."""

_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_relu_gradient = torch.ops.aten.threshold_backward

Product = Callable[..., Tensor]


def worth_it(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether member after member is faster than batched products for inputs `[T or a divisor, B, in]`."""
    # A quarter of what oneDNN needs: staying in the cache pays earlier.
    largest = max(weight.shape[1] * weight.shape[2] for weight in weights)
    return _on_cpu(x) and x.shape[1] * largest >= _LARGE // 4


def perceptrons(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Outputs `[T, B, out]` of inputs `[T or a divisor, B, in]` for weights `[T, in, out]` and biases `[T, 1, out]`.

    Gradients are of first order only, are computed only for what requires them, and can be asked for once. Raises a
    RuntimeError where the stack of `x` does not divide T.
    """
    rows = x.shape[1]
    if rows > 512 and rows % _ROWS:
        # oneDNN compiles a kernel per shape: the next multiple keeps a changing number of rows to few shapes.
        x = torch.nn.functional.pad(x, (0, 0, 0, -rows % _ROWS))
    wanted = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in (*weights, *biases)))
    if wanted:
        y: Tensor = _Perceptrons.apply(x, *weights, *biases)  # pyright: ignore[reportAssignmentType]
    else:
        with torch.no_grad():
            y = _run(x, weights, biases, separate=True, keep=False)[0]
    return y[:, :rows] if y.shape[1] > rows else y


class Trace(NamedTuple):
    """What a pass leaves for its gradients: inputs and hidden layers, of each member or of the whole stack at once."""

    inputs: list[Tensor]
    hidden: list[list[Tensor]]

    @property
    def separate(self) -> bool:
        """Whether it went member by member."""
        return self.inputs[0].ndim == 2


@torch.no_grad()
def forward_trace(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Trace]:
    """Outputs `[T, B, out]` as in `perceptrons`, for any size and device, and the trace for `backward_trace`.

    For learners that know the gradient of their loss: no graph is built.
    """
    return _run(x, weights, biases, separate=worth_it(x, weights), keep=True)


@torch.no_grad()
def backward_trace(
    trace: Trace,
    gradient: Tensor,
    weights: Sequence[Tensor],
    into: Sequence[Tensor] | None = None,
    columns: slice | None = None,
) -> Tensor | None:
    """Gradients of a sum whose gradient in the outputs is `gradient` `[T, B, out]`.

    Those of weights and biases are written `into` tensors of their shapes, all weights first. Given `columns` of the
    inputs, returns their gradient `[T, B, columns]`.
    """
    separate, layers = trace.separate, len(weights)
    products = [_product_for(trace.inputs[0], w) if separate else torch.bmm for w in weights]
    blocks = [_blocks(w, separate) for w in weights]
    targets = None if into is None else [_blocks(t, separate) for t in into]
    to_inputs: list[Tensor] = []
    for i, (flow, inputs, hidden) in enumerate(
        zip(_blocks(gradient, separate), trace.inputs, trace.hidden, strict=True)
    ):
        for layer in reversed(range(layers)):
            fed, product = hidden[layer - 1] if layer else inputs, products[layer]
            if targets is not None:
                _write(product, fed.mT, flow, targets[layer][i])
                torch.sum(flow, -2, keepdim=True, out=targets[layers + layer][i])
            if layer:
                flow = product(flow, blocks[layer][i].mT)
                _relu_gradient.grad_input(flow, fed, 0, grad_input=flow)
            elif columns is not None:
                to_inputs.append(product(flow, blocks[0][i][..., columns, :].mT))
    if columns is None:
        return None
    return _stacked(to_inputs) if separate else to_inputs[0]


@torch.no_grad()
def shared_scalars(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Outputs `[T E, B, 1]` of one-hidden-layer networks, of which E in a row share each of the inputs `[T, B, in]`.

    What they share makes their hidden layers one product. Without a graph.
    """
    outputs = x.new_empty(len(x), x.shape[1], len(weights[0]) // len(x))
    buffer = _hidden_buffer(x, weights)
    for inputs, first, bias, second, output in zip(
        x, *_by_group(len(x), weights[0], biases[0], weights[1]), outputs, strict=True
    ):
        hidden = _joined_hidden(inputs, _joined(first, bias))
        torch.sum(torch.mul(hidden, second.squeeze(2), out=buffer), 2, out=output)
    return outputs.transpose(1, 2).reshape(-1, x.shape[1], 1) + biases[1]


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
    for inputs, wanted, first, bias, second, last, to_first, to_second, to_bias, slope in zip(
        torch.nn.functional.pad(x, (0, 1), value=1.0),
        target,
        *_by_group(groups, weights[0], biases[0], weights[1], biases[1], *gradients[:3]),
        slopes,
        strict=True,
    ):
        joined, second = _joined(first, bias), second.squeeze(2)
        hidden = _joined_hidden(inputs[:, :-1], joined)
        torch.sum(torch.mul(hidden, second, out=buffer), 2, out=slope)
        slope.add_(last.view(-1)).sub_(wanted).mul_(2 / rows)
        _relu_gradient.grad_input(slope.unsqueeze(2).expand_as(hidden), hidden, 0, grad_input=buffer)
        flow = buffer.flatten(1)
        gradient = _product_for(inputs, flow)(inputs.t(), flow).view_as(joined)
        torch.mul(gradient[:-1].transpose(0, 1), second.unsqueeze(1), out=to_first)
        torch.mul(gradient[-1], second, out=to_bias.squeeze(1))
        torch.sum(gradient.mul_(joined), 0, out=to_second.squeeze(2))
    torch.sum(slopes, 1, out=gradients[3].view(groups, -1))
    return (slopes * (rows / 2)).square().mean(1).flatten(), gradients


class _Perceptrons(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        layers = len(parameters) // 2
        y, traced = _run(x, parameters[:layers], parameters[layers:], separate=True, keep=True)
        ctx.hidden = traced.hidden
        ctx.save_for_backward(x, *parameters[:layers])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        to_input, to_weights = ctx.needs_input_grad[:2]
        stack = len(weights[0])
        traced, ctx.hidden = Trace(_inputs(x, stack), ctx.hidden), None
        into = None
        if to_weights:
            into = [torch.empty_like(w) for w in weights] + [w.new_empty(stack, 1, w.shape[2]) for w in weights]
        columns = slice(None) if to_input else None
        input_gradient = backward_trace(traced, gradients[0], weights, into, columns)
        if input_gradient is not None and len(x) < stack:
            input_gradient = input_gradient.unflatten(0, (-1, len(x))).sum(0)
        if into is None:
            return input_gradient, *(None for _ in weights), *(None for _ in weights)
        return input_gradient, *into


def _run(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, separate: bool, keep: bool
) -> tuple[Tensor, Trace]:
    """Outputs, and to `keep` the outputs of the hidden layers."""
    stack, last = len(weights[0]), len(weights) - 1
    if separate:
        layers = [(w.unbind(), b.squeeze(1).unbind(), _product_for(x, w)) for w, b in zip(weights, biases, strict=True)]
        inputs = _inputs(x, stack)
    else:
        layers = [([w], [b], torch.bmm) for w, b in zip(weights, biases, strict=True)]
        inputs = [x if len(x) == stack else x.repeat(stack // len(x), 1, 1)]
    outputs, kept = [], []
    for i, flow in enumerate(inputs):
        hidden = []
        for layer, (weight, bias, product) in enumerate(layers):
            flow = _affine(flow, weight[i], bias[i], product, relu=layer < last)
            if keep and layer < last:
                hidden.append(flow)
        outputs.append(flow)
        kept.append(hidden)
    return _stacked(outputs) if separate else outputs[0], Trace(inputs, kept)


def _blocks(stacked: Tensor, separate: bool) -> Sequence[Tensor]:
    """What is worked on at a time: each member, or the whole stack."""
    return stacked.unbind() if separate else [stacked]


def _inputs(x: Tensor, stack: int) -> list[Tensor]:
    """The input of every member: that of a smaller stack goes round."""
    if stack % len(x):
        raise RuntimeError(f"an input with a stack of {len(x)} does not go into one of {stack}")
    return list(x.unbind()) * (stack // len(x))


def _by_group(groups: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return [tensor.unflatten(0, (groups, -1)).unbind() for tensor in tensors]


def _joined(weight: Tensor, bias: Tensor) -> Tensor:
    """Weights `[E, in, hidden]` and biases `[E, 1, hidden]` as `[in + 1, E, hidden]`: what one product needs."""
    return torch.cat([weight.transpose(0, 1), bias.transpose(0, 1)])


def _joined_hidden(inputs: Tensor, joined: Tensor) -> Tensor:
    """The hidden layers `[B, E, hidden]` of inputs `[B, in]`."""
    weight, bias = joined[:-1].flatten(1), joined[-1].flatten()
    return _affine(inputs, weight, bias, _product_for(inputs, weight), relu=True).unflatten(1, joined.shape[1:])


def _hidden_buffer(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """For one group's hidden layers; used for all of them, so that it stays in the cache."""
    return x.new_empty(x.shape[1], len(weights[0]) // len(x), weights[0].shape[2])


def _affine(x: Tensor, weight: Tensor, bias: Tensor, product: Product, *, relu: bool) -> Tensor:
    if product is _onednn_product:
        return _onednn(x, weight.t(), bias, "relu" if relu else "none", [], "")
    y = torch.baddbmm(bias, x, weight) if product is torch.bmm else torch.addmm(bias, x, weight)
    return y.relu_() if relu else y


def _write(product: Product, a: Tensor, b: Tensor, out: Tensor) -> None:
    if product is _onednn_product:
        out.copy_(product(a, b))
    else:
        product(a, b, out=out)


def _product_for(x: Tensor, weight: Tensor) -> Product:
    """The faster product for a layer's output and for both of its gradients, which all have the same size."""
    sizes = x.shape[-2], weight.shape[-2], weight.shape[-1]
    is_large = math.prod(sizes) >= _LARGE and min(sizes) >= _NARROW
    return _onednn_product if is_large and _onednn is not None and _on_cpu(x) else torch.mm


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _onednn_product(a: Tensor, b: Tensor) -> Tensor:
    return _onednn(a, b.t(), None, "none", [], "")


def _stacked(members: list[Tensor]) -> Tensor:
    return members[0].unsqueeze(0) if len(members) == 1 else torch.stack(members)
