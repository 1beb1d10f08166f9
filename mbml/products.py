"""Matrix products by the fastest of the ways that torch has for their size: its own, transposed, or oneDNN.

Factors are `[..., B, in]` and `[..., in, out]`, of two or three dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_NARROW = 16
"""A result of fewer columns is computed as the transpose of one with so few rows: two to four times as fast."""
_FEW = 32
"""Unless it has no more rows than this."""
_LARGE = 1 << 25
"""Multiplications from which oneDNN's product is faster than the one behind `torch.mm`. Alone it is from an eighth of
that on, but not among an update's other work."""

_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x @ weight + bias` for a bias `[..., 1, out]`; differentiable."""
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    if _is_narrow(x, weight):
        return product(bias.mT, weight.mT, x.mT).mT
    return product(bias, x, weight)


def layer(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """`affine`, and with `relu` its positive part. Without a graph."""
    if _is_large(x, weight):
        return _onednn(x, weight.t(), bias.view(-1), "relu" if relu else "none", [], "")
    y = affine(x, weight, bias)
    return y.relu_() if relu else y


def matmul(a: Tensor, b: Tensor, *, varying: bool = False) -> Tensor:
    """`a @ b`. Without a graph. For `varying` numbers of rows never by oneDNN, which compiles a kernel for each."""
    if not varying and _is_large(a, b):
        return _onednn(a, b.t(), None, "none", [], "")
    product = torch.mm if a.ndim == 2 else torch.bmm
    return product(b.mT, a.mT).mT if _is_narrow(a, b) else product(a, b)


def matmul_into(place: Tensor, a: Tensor, b: Tensor) -> None:
    """Write `a @ b` into `place`. Without a graph, and without oneDNN, which can write into its own memory only."""
    if _is_narrow(a, b):
        place.copy_(matmul(a, b))
    else:
        (torch.mm if a.ndim == 2 else torch.bmm)(a, b, out=place)


def _is_narrow(a: Tensor, b: Tensor) -> bool:
    return b.shape[-1] < _NARROW and a.shape[-2] > _FEW and a.is_cpu


def _is_large(a: Tensor, b: Tensor) -> bool:
    sizes = (*a.shape, b.shape[-1])
    return (
        a.ndim == 2
        and math.prod(sizes) >= _LARGE
        and min(sizes) >= _NARROW
        and _onednn is not None
        and a.is_cpu
        and a.dtype == torch.float32
    )
