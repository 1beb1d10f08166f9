"""One captured CUDA graph per update: a GPU then launches it at once, and not kernel by kernel from Python."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten_with_path

from mbml.learner import Learner

Update = Callable[..., dict[str, Tensor]]
_WARM_UP = 3


def captured(learner: Learner) -> Update:
    """`learner.update` as a CUDA graph, captured at the first call; itself on a CPU and where the learner forbids it.

    All calls must bring tensors of one shape. Load a checkpoint before the first call: an optimiser that loads gets
    new tensors, and the graph would go on writing to the old ones.
    """
    on_gpu = any(generator.device.type == "cuda" for generator in learner.generators())
    return _Captured(learner) if on_gpu and learner.constant else learner.update


class _Captured:
    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        if self._graph is None:
            self._graph = self._capture(rows)
        self._rows.copy_(rows)
        self._graph.replay()
        self._learner.steps_done += 1
        # The next replay writes to the same memory.
        return {name: value.clone() for name, value in self._outputs.items()}

    def _capture(self, rows: Tensor) -> torch.cuda.CUDAGraph:
        self._rows = rows.clone()
        with kept(self._learner):
            # On a side stream, as PyTorch demands; it also makes the optimisers' state, which must not be in the graph.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._learner.update(self._rows)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            for generator in self._learner.generators():
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph):
                self._outputs = self._learner.update(self._rows)
        return graph


@contextmanager
def kept(learner: Learner) -> Iterator[None]:
    """Put the state of `learner` back at the end, in place: a graph writes to these very tensors.

    Adam's state that was made in between becomes zero, which is how it starts.
    """
    before = {place: tensor.clone() for place, tensor in _tensors(learner)}
    steps, drawn = learner.steps_done, [generator.get_state() for generator in learner.generators()]
    yield
    learner.steps_done = steps
    for generator, state in zip(learner.generators(), drawn, strict=True):
        generator.set_state(state)
    with torch.no_grad():
        for place, tensor in _tensors(learner):
            tensor.copy_(before[place]) if place in before else tensor.zero_()


def _tensors(learner: Learner) -> list[tuple[object, Tensor]]:
    """The tensors of a learner's state, each with its place."""
    leaves, _ = tree_flatten_with_path(learner.state_dict())
    return [(place, leaf) for place, leaf in leaves if isinstance(leaf, Tensor)]
