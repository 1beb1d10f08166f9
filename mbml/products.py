"""Matrix products by oneDNN on processors whose wide registers the library behind `torch.mm` leaves alone.

That library is Intel's MKL. On an AMD processor with AVX-512 it computes with AVX2, half as fast as the processor can.
Everywhere else these are `torch.mm` and its like.
"""

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEAST = {2: (1 << 20, 0), 3: (1 << 22, 1 << 16)}
"""Multiplications, and size of the largest matrix, from which a product is faster that way; by the dimensions of its
factors, because the members of a stack are computed one by one."""


def _mkl_leaves_half() -> bool:
    try:
        vendor = Path("/proc/cpuinfo").read_text()
    except OSError:  # another system
        return False
    there = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return there and "AuthenticAMD" in vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"


_FASTER = _mkl_leaves_half()
# It compiles a product for every shape, half a megabyte each, of which it and torch would each keep 1,024.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "128")
_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x @ weight + bias` of `x` `[..., B, in]`, `weight` `[..., in, out]` and `bias` `[..., 1, out]`, with or without
    one dimension of a stack; differentiable once."""
    if _wide(x, weight):
        return _Affine.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return torch.addmm(bias, x, weight) if x.ndim == 2 else torch.baddbmm(bias, x, weight)


def matmul(a: Tensor, b: Tensor, into: Tensor | None = None) -> Tensor:
    """`a @ b` of `[..., n, k]` and `[..., k, m]`, written `into` a tensor if there is one. Without a graph."""
    if not _wide(a, b):
        return torch.mm(a, b, out=into) if a.ndim == 2 else torch.bmm(a, b, out=into)
    found = _product(a, b)
    return found if into is None else into.copy_(found)


def _wide(a: Tensor, b: Tensor) -> bool:
    # Exporters trace with tensors of other types.
    if not _FASTER or a.device.type != "cpu" or a.dtype != torch.float32 or type(a) not in (Tensor, nn.Parameter):
        return False
    sizes, (least, largest) = (*a.shape[-2:], b.shape[-1]), _LEAST[a.ndim]
    products = math.prod(sizes)
    return sizes[-1] > 1 and products >= least and products // min(sizes) >= largest


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    if a.ndim == 2:
        return _linear(a, b.t(), None if bias is None else bias.view(-1), "none", [], "")
    biases = [None] * len(a) if bias is None else bias
    return torch.stack([_product(*member) for member in zip(a, b, biases, strict=True)])


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (flow,) = ctx.saved_tensors, gradients
        flow = flow.contiguous()
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            matmul(flow, weight.mT) if to_x else None,
            matmul(x.mT, flow) if to_weight else None,
            flow.sum(-2, keepdim=True) if to_bias else None,
        )
