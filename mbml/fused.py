"""A stack of ReLU perceptrons as one differentiable function, for products too large to gain from batching.

Member after member, so that what one layer leaves is still in the cache when the next one, or its gradient, reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LARGE = 1 << 21
"""Multiplications from which oneDNN's product is faster than the one behind `torch.mm`; a smaller one pays more for
the call."""
_NARROW = 8
"""Width below which oneDNN is slower, whatever the size."""
_ROWS = 16
"""Many rows are padded to a multiple of this."""

_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_relu_gradient = torch.ops.aten.threshold_backward


def worth_it(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether `perceptrons` is faster than batched products for inputs `[T or 1, B, in]`."""
    # A quarter of what oneDNN needs: staying in the cache pays earlier.
    largest = max(weight.shape[1] * weight.shape[2] for weight in weights)
    return _on_cpu(x) and x.shape[1] * largest >= _LARGE // 4


def perceptrons(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Outputs `[T, B, out]` of inputs `[T or 1, B, in]` for weights `[T, in, out]` and biases `[T, 1, out]`.

    Gradients are of first order only, are computed only for what requires them, and can be asked for once. Raises a
    RuntimeError where the stack of `x` is another one.
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
            y, _ = _forward(x, weights, biases, keep=False)
    return y[:, :rows] if y.shape[1] > rows else y


def shared_scalars(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Outputs `[T E, B, 1]` of one-hidden-layer networks, of which E in a row share each of the inputs `[T, B, in]`.

    What they share makes their hidden layers one product. No gradient reaches `x`.
    """
    parameters = (*weights, *biases)
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        return _SharedHidden.apply(x, *parameters)  # pyright: ignore[reportReturnType]
    with torch.no_grad():
        return _shared_forward(x, *parameters, keep=False)[0]


class _Perceptrons(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        layers = len(parameters) // 2
        y, ctx.hidden = _forward(x, parameters[:layers], parameters[layers:], keep=True)
        ctx.save_for_backward(x, *parameters[:layers])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        to_input, to_weights = ctx.needs_input_grad[:2]
        stack, layers = weights[0].shape[0], range(len(weights))
        inputs, flows = x.expand(stack, -1, -1).unbind(), gradients[0].unbind()
        transposed = [w.transpose(1, 2).unbind() for w in weights]
        products = [_product_for(x, w) for w in weights]
        weight_gradients: list[list[Tensor]] = [[] for _ in layers]
        bias_gradients: list[list[Tensor]] = [[] for _ in layers]
        input_gradients: list[Tensor] = []
        for member in range(stack):
            flow = flows[member]
            for layer in reversed(layers):
                fed = ctx.hidden[member][layer - 1] if layer > 0 else inputs[member]
                if to_weights:
                    weight_gradients[layer].append(products[layer](fed.t(), flow))
                    bias_gradients[layer].append(flow.sum(0, keepdim=True))
                if layer > 0:
                    flow = products[layer](flow, transposed[layer][member])
                    _relu_gradient.grad_input(flow, fed, 0, grad_input=flow)
                elif to_input:
                    input_gradients.append(products[0](flow, transposed[0][member]))
            ctx.hidden[member] = None  # frees it; one backward pass is all that a step makes
        input_gradient = _stacked(input_gradients) if to_input else None
        if input_gradient is not None and len(x) < stack:
            input_gradient = input_gradient.sum(0, keepdim=True)
        if not to_weights:
            return input_gradient, *(None for _ in layers), *(None for _ in layers)
        return input_gradient, *map(_stacked, weight_gradients), *map(_stacked, bias_gradients)


def _forward(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, keep: bool
) -> tuple[Tensor, list[list[Tensor] | None]]:
    """Outputs, and to `keep` the outputs of every member's hidden layers."""
    last = len(weights) - 1
    layers = [(w.unbind(), b.squeeze(1).unbind(), _product_for(x, w)) for w, b in zip(weights, biases, strict=True)]
    outputs, kept = [], []
    for member, flow in enumerate(x.expand(weights[0].shape[0], -1, -1).unbind()):
        hidden = []
        for layer, (weight, bias, product) in enumerate(layers):
            flow = _affine(flow, weight[member], bias[member], product, relu=layer < last)
            if keep and layer < last:
                hidden.append(flow)
        outputs.append(flow)
        kept.append(hidden)
    return _stacked(outputs), kept


class _SharedHidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        y, ctx.hidden = _shared_forward(x, *parameters, keep=True)
        ctx.save_for_backward(x, *parameters[:2])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, first, second = ctx.saved_tensors
        groups, rows = x.shape[:2]
        first_gradient, second_gradient = torch.empty_like(first), torch.empty_like(second)
        bias_gradient = first.new_empty(first.shape[0], 1, first.shape[2])
        # One for all groups, so that it stays in the cache.
        buffer = torch.empty_like(ctx.hidden[0])
        by_group = [
            t.unflatten(0, (groups, -1)).unbind()
            for t in (gradients[0], first_gradient, bias_gradient.squeeze(1), second, second_gradient.squeeze(2))
        ]
        for rows_in, hidden, slope, to_first, to_bias, weight, to_second in zip(
            x.unbind(), ctx.hidden, *by_group, strict=True
        ):
            members, width = to_bias.shape
            slope = slope.transpose(0, 1).contiguous()
            torch.sum(torch.mul(hidden, slope, out=buffer), 0, out=to_second)
            torch.mul(slope, weight.squeeze(2), out=buffer)
            _relu_gradient.grad_input(buffer, hidden, 0, grad_input=buffer)
            torch.sum(buffer, 0, out=to_bias)
            flow = buffer.view(rows, members * width)
            gradient = _product_for(rows_in, flow)(rows_in.t(), flow)
            to_first.copy_(gradient.view(-1, members, width).transpose(0, 1))
        return None, first_gradient, second_gradient, bias_gradient, gradients[0].sum(1, keepdim=True)


def _shared_forward(
    x: Tensor, first: Tensor, second: Tensor, first_bias: Tensor, second_bias: Tensor, *, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and to `keep` the hidden layer `[B, E, hidden]` of every group."""
    groups = x.shape[0]
    by_group = [t.unflatten(0, (groups, -1)).unbind() for t in (first, first_bias, second)]
    outputs, kept = [], []
    buffer = x.new_empty(x.shape[1], len(first) // groups, first.shape[2])
    for rows, weight, bias, output in zip(x.unbind(), *by_group, strict=True):
        joined = weight.transpose(0, 1).flatten(1)
        hidden = _affine(rows, joined, bias.flatten(), _product_for(rows, joined), relu=True)
        hidden = hidden.unflatten(1, (weight.shape[0], -1))
        outputs.append(torch.mul(hidden, output.squeeze(2), out=buffer).sum(2).t())
        if keep:
            kept.append(hidden)
    return torch.cat(outputs).unsqueeze(2) + second_bias, kept


def _affine(
    x: Tensor, weight: Tensor, bias: Tensor, product: Callable[[Tensor, Tensor], Tensor], *, relu: bool
) -> Tensor:
    if product is _onednn_product:
        return _onednn(x, weight.t(), bias, "relu" if relu else "none", [], "")
    y = torch.addmm(bias, x, weight)
    return y.relu_() if relu else y


def _product_for(x: Tensor, weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The faster matrix product for a layer's output and for both of its gradients, which all have the same size."""
    sizes = x.shape[-2], weight.shape[-2], weight.shape[-1]
    is_large = math.prod(sizes) >= _LARGE and min(sizes) >= _NARROW
    return _onednn_product if is_large and _onednn is not None and _on_cpu(x) else torch.mm


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _onednn_product(a: Tensor, b: Tensor) -> Tensor:
    return _onednn(a, b.t(), None, "none", [], "")


def _stacked(members: list[Tensor]) -> Tensor:
    return members[0].unsqueeze(0) if len(members) == 1 else torch.stack(members)
