"""What every trick for speed buys: the work of a real stage with it and without it, in turn, in one process.

`python -m benchmarks.tricks` prints the table that stands in benchmarks/README.md. Each trick is taken away by putting
its plain twin in its place; the work is an update (or the choice of actions) of the sizes of a preset.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.ours.distillation import make_learner
from benchmarks.ours.learners import random_rows, seeded, stacked
from mbml import products
from mbml.models import Ensemble, EnsembleConfig
from mbml.nets import StackedMLP
from mbml.rows import RowLayout
from mbml.sac import SAC, SACConfig
from mbml.teachers.bcq import BCQ, BCQConfig

_LAYOUT = RowLayout(observation_size=17, action_size=6)
_ROUNDS, _SECONDS = 7, 1.0


class Work(NamedTuple):
    """A stage's inner work: threads, how to build it (under the patches), for one call of it."""

    threads: int
    build: Callable[[], Callable[[], Any]]


def _sac(tasks: int, policy: tuple[int, ...], critic: tuple[int, ...], batch: int) -> Callable[[], Any]:
    config = SACConfig(policy_hidden=policy, critic_hidden=critic, batch_size=batch)
    learner = SAC(config, _LAYOUT, tasks, seeded())
    return stacked(learner.update, random_rows(tasks, 20_000, _LAYOUT), batch)


def _models(tasks: int, config: EnsembleConfig) -> Callable[[], Any]:
    ensemble = Ensemble(config, _LAYOUT, tasks, "reward", seeded())
    return stacked(ensemble.update, random_rows(tasks, 20_000, _LAYOUT), config.batch_size)


def _teach(tasks: int) -> Callable[[], Any]:
    return stacked(BCQ(BCQConfig(), _LAYOUT, tasks, seeded()).update, random_rows(tasks, 20_000, _LAYOUT), 100)


def _distill(width: int, depths: tuple[int, ...]) -> Callable[[], Any]:
    return make_learner(_LAYOUT.observation_size, _LAYOUT.action_size, width, depths, 10, 2_000, 0.5).update


_LAPTOP_MODELS = EnsembleConfig(members=5, hidden=(128, 128))
WORK = {
    "collect, laptop": Work(1, lambda: _sac(5, (128, 128), (128, 128), 128)),
    "collect, paper": Work(1, lambda: _sac(1, (256, 256), (1024,) * 7, 256)),
    "warmstart, laptop": Work(1, lambda: _sac(5, (128, 128), (256,) * 3, 64)),
    "models, laptop": Work(1, lambda: _models(5, _LAPTOP_MODELS)),
    "models, paper": Work(1, lambda: _models(1, EnsembleConfig())),
    "teach, laptop": Work(1, lambda: _teach(5)),
    "teach, paper": Work(1, lambda: _teach(1)),
    "distill, laptop": Work(1, lambda: _distill(256, (3, 3, 3))),
    "distill, paper": Work(1, lambda: _distill(1024, (9, 7, 8))),
}


@contextmanager
def _patched(*patches: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield


class _Graph(NamedTuple):
    """In place of a trace: the graph that autograd builds."""

    inputs: Tensor
    outputs: Tensor

    def rows(self, which: slice) -> _Graph:
        with torch.enable_grad():
            return _Graph(self.inputs, self.outputs[:, which])


def _trace(network: StackedMLP, x: Tensor) -> tuple[Tensor, _Graph]:
    with torch.enable_grad():
        # One input per member, because the gradient is wanted member by member.
        x = x.detach().repeat(network.stack // len(x), 1, 1).requires_grad_()
        y = network(x)
    return y.detach(), _Graph(x, y)


def _backward(network: StackedMLP, trace: _Graph, gradient: Tensor) -> None:
    parameters = list(network.parameters())
    for p, found in zip(parameters, torch.autograd.grad(trace.outputs, parameters, gradient), strict=True):
        p.grad = found


def _input_gradient(network: StackedMLP, trace: _Graph, gradient: Tensor, columns: slice = slice(None)) -> Tensor:
    return torch.autograd.grad(trace.outputs, trace.inputs, gradient)[0][..., columns]


TRICKS: dict[str, tuple[str, Callable[[], Any]]] = {
    "own gradients": (
        "SAC's gradients written out instead of autograd's",
        lambda: _patched(
            patch.object(StackedMLP, "trace", _trace),
            patch.object(StackedMLP, "backward", _backward),
            patch.object(StackedMLP, "input_gradient", _input_gradient),
        ),
    ),
    "shared hidden layer": (
        "ensembles of one hidden layer as one product a task",
        lambda: _patched(patch.object(Ensemble, "_shares_hidden", False)),
    ),
    "wide products": (
        "large products by oneDNN where MKL leaves half of the processor's registers alone (AMD with AVX-512)",
        lambda: _patched(patch.object(products, "_FASTER", False)),
    ),
}
"""Name -> what it is, and a context in which it is taken away."""

_USED = {
    "own gradients": "collect warmstart",
    "shared hidden layer": "models",
    "wide products": "collect warmstart models teach distill",
}


def bought(trick: str, work: Work) -> tuple[float, float]:
    """Milliseconds of a call with the trick, and how many times as long it takes without: median over rounds."""
    torch.set_num_threads(work.threads)
    without = TRICKS[trick][1]
    calls: list[tuple[Callable[[], Any], Callable[[], Any]]] = [(lambda: _patched(), work.build())]
    with without():
        calls.append((without, work.build()))
    rounds: list[list[float]] = [[], []]
    for number in range(_ROUNDS + 1):
        for place, (context, call) in enumerate(calls):
            with context():
                count, started = 0, time.perf_counter()
                while (spent := time.perf_counter() - started) < _SECONDS or count < 1:
                    call()
                    count += 1
            if number:  # the first is the warm-up
                rounds[place].append(1000 * spent / count)
    ratios = [slow / fast for fast, slow in zip(*rounds, strict=True)]
    return statistics.median(rounds[0]), statistics.median(ratios)


def main() -> None:
    """Print the table: a line per trick and work; below 1.1 in every one of them a trick should go."""
    print("| trick | work | ms with it | without it |\n| --- | --- | ---: | ---: |")
    for trick, (about, _) in TRICKS.items():
        if len(sys.argv) > 1 and trick not in sys.argv[1:]:
            continue
        print(f"| **{trick}**: {about} | | | |")
        for name, work in WORK.items():
            if name.split(",")[0] in _USED[trick].split():
                fast, ratio = bought(trick, work)
                print(f"| | {name} | {fast:.3g} | {ratio:.2f} x |", flush=True)


if __name__ == "__main__":
    main()
