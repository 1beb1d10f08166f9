"""One captured CUDA graph per update: a GPU then launches it at once, and not kernel by kernel from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

Update = Callable[[Tensor], dict[str, Tensor]]
_WARM_UP = 3


class Learner(Protocol):
    """What can be captured: an update of fixed shapes that reads nothing back, with a constant learning rate."""

    def update(self, rows: Tensor) -> dict[str, Tensor]:
        """One update on rows `[T, batch, row]`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state, whose tensors are those that `update` writes to, and not copies."""
        ...


def captured(learner: Learner, generator: torch.Generator) -> Update:
    """`learner.update` as a CUDA graph, captured at the first call; on a CPU `learner.update` itself.

    `generator` is the one that the update draws from. All calls must bring rows of one shape. Load a checkpoint before
    the first call: an optimiser that loads gets new tensors, and the graph would go on writing to the old ones.
    """
    return _Captured(learner, generator) if generator.device.type == "cuda" else learner.update


class _Captured:
    def __init__(self, learner: Learner, generator: torch.Generator) -> None:
        self._learner, self._generator = learner, generator
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        if self._graph is None:
            self._graph = self._capture(rows)
        self._rows.copy_(rows)
        self._graph.replay()
        # The next replay writes to the same memory.
        return {name: value.clone() for name, value in self._outputs.items()}

    def _capture(self, rows: Tensor) -> torch.cuda.CUDAGraph:
        self._rows = rows.clone()
        with kept(self._learner, self._generator):
            # On a side stream, as PyTorch demands; it also makes the optimisers' state, which must not be in the graph.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._learner.update(self._rows)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self._generator)
            with torch.cuda.graph(graph):
                self._outputs = self._learner.update(self._rows)
        return graph


@contextmanager
def kept(learner: Learner, generator: torch.Generator) -> Iterator[None]:
    """Put the state of `learner` and `generator` back at the end, in place: a graph writes to these very tensors.

    Adam's state that was made in between becomes zero, which is how it starts.
    """
    before = {place: tensor.clone() for place, tensor in _tensors(learner.state_dict())}
    drawn = generator.get_state()
    yield
    generator.set_state(drawn)
    with torch.no_grad():
        for place, tensor in _tensors(learner.state_dict()):
            if place in before:
                tensor.copy_(before[place])
            else:
                tensor.zero_()


def _tensors(tree: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts and lists, each with its place."""
    if isinstance(tree, Tensor):
        yield place, tree
    elif isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _tensors(value, f"{place}/{key}")
