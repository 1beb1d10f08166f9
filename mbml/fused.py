"""A stack of ReLU perceptrons as one differentiable function, for products too large to gain from batching.

Member after member, so that what one layer leaves is still in the cache when the next one, or its gradient, reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mbml.products import layer, matmul, matmul_into

_WORTH_IT = 1 << 21
"""Multiplications of the largest layer from which member after member is faster than batched products and autograd."""
_WORTH_IT_TRACED = 1 << 22
"""And than batched products without autograd."""
_ROWS = 16
"""Many rows are padded to a multiple of this."""

_relu_gradient = torch.ops.aten.threshold_backward


def worth_it(x: Tensor, weights: Sequence[Tensor], least: int = _WORTH_IT) -> bool:
    """Whether member after member is faster than batched products for inputs `[T or a divisor, B, in]`."""
    largest = max(weight.shape[1] * weight.shape[2] for weight in weights)
    return x.is_cpu and x.dtype == torch.float32 and x.shape[1] * largest >= least


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

    def rows(self, which: slice) -> Trace:
        """That of some of the rows, for a gradient in their outputs only."""
        return Trace([x[..., which, :] for x in self.inputs], [[h[..., which, :] for h in hs] for hs in self.hidden])


@torch.no_grad()
def forward_trace(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> tuple[Tensor, Trace]:
    """Outputs `[T, B, out]` as in `perceptrons`, for any size and device, and the trace for `backward_trace`.

    For learners that know the gradient of their loss: no graph is built.
    """
    return _run(x, weights, biases, separate=worth_it(x, weights, _WORTH_IT_TRACED), keep=True)


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
    inputs, returns their gradient `[T, B, columns]`; if it is the only one, rows without a gradient cost nothing.
    """
    separate, layers = trace.separate, len(weights)
    blocks = [_blocks(w, separate) for w in weights]
    targets = None if into is None else [_blocks(t, separate) for t in into]
    to_inputs: list[Tensor] = []
    for i, (flow, inputs, hidden) in enumerate(
        zip(_blocks(gradient, separate), trace.inputs, trace.hidden, strict=True)
    ):
        chosen = _rows_with_gradient(flow) if into is None and separate else None
        if chosen is not None:
            flow, hidden = flow[chosen], [h.index_select(0, chosen) for h in hidden]
        for number in reversed(range(layers)):
            fed = hidden[number - 1] if number else inputs
            if targets is not None:
                matmul_into(targets[number][i], fed.mT, flow)
                torch.sum(flow, -2, keepdim=True, out=targets[layers + number][i])
            if number:
                flow = matmul(flow, blocks[number][i].mT, varying=chosen is not None)
                _relu_gradient.grad_input(flow, fed, 0, grad_input=flow)
            elif columns is not None:
                flow = matmul(flow, blocks[0][i][..., columns, :].mT, varying=chosen is not None)
                to_inputs.append(flow if chosen is None else _spread(flow, chosen, len(inputs)))
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
        gradient = matmul(inputs.t(), flow).view_as(joined)
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
    layers = [(_blocks(w, separate), _blocks(b, separate)) for w, b in zip(weights, biases, strict=True)]
    if separate:
        inputs = _inputs(x, stack)
    else:
        inputs = [x if len(x) == stack else x.repeat(stack // len(x), 1, 1)]
    outputs, kept = [], []
    for i, flow in enumerate(inputs):
        hidden = []
        for number, (weight, bias) in enumerate(layers):
            flow = layer(flow, weight[i], bias[i], relu=number < last)
            if keep and number < last:
                hidden.append(flow)
        outputs.append(flow)
        kept.append(hidden)
    return _stacked(outputs) if separate else outputs[0], Trace(inputs, kept)


def _rows_with_gradient(gradient: Tensor) -> Tensor | None:
    """Numbers of the rows of `[B, out]` that are not zero; None stands for all."""
    chosen = gradient.any(1).nonzero().squeeze(1)
    return chosen if len(chosen) < len(gradient) else None


def _spread(some: Tensor, chosen: Tensor, rows: int) -> Tensor:
    """The chosen ones of so many rows; the others are zero."""
    return some.new_zeros(rows, some.shape[1]).index_copy_(0, chosen, some)


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
    return layer(inputs, joined[:-1].flatten(1), joined[-1:].flatten(1), relu=True).unflatten(1, joined.shape[1:])


def _hidden_buffer(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """For one group's hidden layers; used for all of them, so that it stays in the cache."""
    return x.new_empty(x.shape[1], len(weights[0]) // len(x), weights[0].shape[2])


def _stacked(members: list[Tensor]) -> Tensor:
    return members[0].unsqueeze(0) if len(members) == 1 else torch.stack(members)
