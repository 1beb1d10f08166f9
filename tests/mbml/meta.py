"""A stand-in for a device that is not there.

Tensors on `meta` have shapes and types but no values, so a learner that reads a value back fails; `OnlyMeta` adds what
a GPU refuses too: a tensor on the CPU inside an update. What a GPU computes, and whether it does, only one can tell:
`test_gpu.py`, `test_capture.py` and `benchmarks/gpu.sh`, where there is one.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MetaGenerator(torch.Generator):
    """A generator that says it is on the device meta, where torch has none; what is drawn there has no values."""

    device = torch.device("meta")


class OnlyMeta(TorchDispatchMode):
    """Refuses every operation that reads or makes a tensor elsewhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        assert all(tensor.is_meta for tensor in tensors), func
        return result


@pytest.fixture
def fused_adam_on_meta(monkeypatch):
    """It has a kernel for meta, but a list of devices leaves it out."""
    module = sys.modules[torch.optim.Adam.__module__]
    monkeypatch.setattr(module, "_device_dtype_check_for_fused", lambda parameter: None)


def assert_updates(learner, *rows: Tensor) -> None:
    """Two updates and all that they leave are on meta."""
    with OnlyMeta():
        losses = [learner.update(*rows), learner.update(*rows)]
    state = {name: value for name, value in learner.state_dict().items() if not name.endswith("generator")}
    tensors = [leaf for leaf in tree_leaves((losses, state)) if isinstance(leaf, Tensor)]
    assert tensors
    assert all(tensor.is_meta for tensor in tensors)
