"""Small problems and brute-force pieces that the tests of the learners share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbml import envs
from mbml.data import Dataset, DatasetWriter, TransitionBatch
from mbml.encoders import Belief, EncoderConfig
from mbml.evaluate import make_envs
from mbml.nets import StackedMLP
from mbml.rollout import EnvStack
from mbml.rows import MappedRows, RowLayout
from mbml.serialise import load_tree, save_tree
from mbml.students import StudentConfig

LAYOUT = RowLayout(3, 2)
UMAZE = RowLayout(4, 2)
POINT = RowLayout(1, 1)

# Weights and biases of one perceptron in float64.
Layers = list[tuple[Tensor, Tensor]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clone(generator: torch.Generator) -> torch.Generator:
    """A generator that will draw what `generator` would draw next."""
    copied = torch.Generator()
    copied.set_state(generator.get_state())
    return copied


def small_student(embedding_size: int = 3, hidden: tuple[int, ...] = (8, 8), **changes: Any) -> StudentConfig:
    """All networks of one width, and few candidates."""
    widths = dict.fromkeys(("value_hidden", "decoder_hidden", "perturbation_hidden"), hidden)
    encoder = EncoderConfig(hidden=hidden, embedding_size=embedding_size)
    return StudentConfig(**{"encoder": encoder, "acting_candidates": 4, **widths, **changes})


def random_rows(tasks: int, number: int, layout: RowLayout = LAYOUT, seed: int = 0) -> Tensor:
    """Rows of plausible scale: actions in [-1, 1], a fifth of them terminated."""
    generator = seeded(seed)
    rows = torch.randn(tasks, number, layout.row_size, generator=generator)
    rows[..., layout.observation_size : layout.pair_size].tanh_()
    rows[..., -1] = (torch.rand(tasks, number, generator=generator) < 0.2).float()
    return rows


def on_disk(
    root: Path, rows: Tensor, layout: RowLayout = LAYOUT, shard_rows: Sequence[int] = (1_000_000,)
) -> MappedRows:
    """The same rows `[T, N, row]` mapped from a dataset; the tasks take turns with the sizes of shards."""
    number = rows.shape[1]
    sizes = {"observation_size": layout.observation_size, "action_size": layout.action_size}
    with DatasetWriter(root, environment="toy", horizon=number, collection={}, **sizes) as writer:
        for task, own in enumerate(rows):
            batch = layout.split(own)
            columns = TransitionBatch(
                *(part.contiguous().numpy() for part in batch[:3]),
                reward=batch.reward.flatten().numpy(),
                terminated=batch.terminated.flatten().bool().numpy(),
                truncated=np.zeros(number, bool),
                episode=np.zeros(number, np.int32),
                step=np.arange(number, dtype=np.int32),
            )
            shard = shard_rows[task % len(shard_rows)]
            writer.add_task(task, columns, parameter=None, label=str(task), shard_rows=shard)
    dataset = Dataset.open(root)
    return MappedRows([dataset.shards(task) for task in dataset.task_indices])


def point_rows(number: int, seed: int = 0, tasks: int = 1) -> Tensor:
    """A point on [-1, 1] pushed by at most 0.3 a step that earns minus its squared distance from 0; random actions."""
    generator = seeded(seed)
    x, a = (torch.rand(tasks, number, 1, generator=generator) * 2 - 1 for _ in range(2))
    moved = point_step(x, a)
    return torch.cat([x, a, moved, -moved.square(), torch.zeros_like(x)], -1)


def point_step(x: Tensor, a: Tensor) -> Tensor:
    return (x + 0.3 * a).clamp(-1, 1)


def scatter(*networks: StackedMLP) -> None:
    """Move weights by 0.1 at random, so that a target network is clearly not the online one."""
    generator = seeded(77)
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def layers_of(network: StackedMLP, member: int = 0) -> Layers:
    pairs = zip(network.weights, network.biases, strict=True)
    return [(w[member].detach().double().clone(), b[member, 0].detach().double().clone()) for w, b in pairs]


def trainable(layers: Layers) -> list[Tensor]:
    """The parameters of `layers`, made to require gradients."""
    return [p.requires_grad_() for pair in layers for p in pair]


def forward(layers: Layers, *parts: Tensor) -> Tensor:
    """ReLU perceptron, float64, of the parts joined; the output is linear."""
    x = torch.cat([p.double() for p in parts], -1)
    for weight, bias in layers[:-1]:
        x = torch.clamp(x @ weight + bias, min=0)
    return x @ layers[-1][0] + layers[-1][1]


def naive_kl(a: Belief, b: Belief) -> Tensor:
    """KL(a || b) of two diagonal Gaussians `[Z]` by torch.distributions."""
    normal = torch.distributions.Normal
    p, q = normal(a.mean, a.variance.sqrt()), normal(b.mean, b.variance.sqrt())
    return torch.distributions.kl_divergence(p, q).sum()


def naive_posterior(encoder: Layers, transitions: Sequence[Tensor], size: int) -> Belief:
    """Product of Gaussians of a list of transitions `[d_c]`, one after the other; an empty list gives N(0, I)."""
    if not transitions:
        return Belief(torch.zeros(size).double(), torch.ones(size).double())
    precision, weighted = torch.zeros(size).double(), torch.zeros(size).double()
    for transition in transitions:
        output = forward(encoder, transition)
        variance = torch.clamp(torch.nn.functional.softplus(output[size:]), min=1e-7)
        precision = precision + 1 / variance
        weighted = weighted + output[:size] / variance
    return Belief(weighted / precision, 1 / precision)


def through_disk(path: Path, state: Any) -> Any:
    """`state` as a resumed program sees it."""
    save_tree(path / "state.safetensors", state)
    return load_tree(path / "state.safetensors")


def assert_same_bits(a: Any, b: Any, place: str = "") -> None:
    """Two trees of tensors and scalars are equal, bit for bit."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b), place
    elif isinstance(a, dict):
        assert list(map(str, a)) == list(map(str, b)), place
        for (key, x), y in zip(a.items(), b.values(), strict=True):
            assert_same_bits(x, y, f"{place}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(x, y, f"{place}.{index}")
    else:
        assert a == b, place


def snapshot(state: Any) -> Any:
    """A deep copy of a state, which the learner goes on changing."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    return [snapshot(value) for value in state] if isinstance(state, list | tuple) else state


def env_maker(name: str, tasks: Sequence[int], horizon: int):
    """A function that builds so many environments of each training task."""
    distribution = envs.get(name)
    chosen = [distribution.tasks("train")[i] for i in tasks]

    def make(copies: int) -> EnvStack:
        return make_envs(distribution, chosen, horizon, copies)

    return make
