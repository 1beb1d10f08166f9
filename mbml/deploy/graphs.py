"""The policy as two ONNX graphs, so that it acts where there is no Python; made of the very modules that act here.

    update  statistics, observation, action, reward, next_observation -> statistics, unfamiliarity
    act     statistics, observation, z_noise, noise -> action

What is scaled is scaled inside, in float64; statistics begin as zeros. z is a function of the statistics and z_noise
that `act` is given: whoever calls keeps those of the moment at which z was formed (`Inference.renewed_every`). An input
that a policy does not need, it does not have; all of them are listed in policy.json. Every kind of policy that is saved
can be exported: `generative` and `acting` students and `pearl`, under every encoder, and `bank`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mbml.deploy.description import ACT, UPDATE, Affine, Description, Graph
from mbml.deploy.familiarity import Familiarity, GuardedEncoder
from mbml.encoders import Encoder
from mbml.policy import ContextPolicy, PolicyError

_OPSET = 18
_TYPES = {torch.float32: "float32", torch.float64: "float64"}


class _Scaled(nn.Module):
    """A user's numbers (float64) and the network's (float32)."""

    offset: Tensor
    scale: Tensor

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        for name, value in affine._asdict().items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64))

    def forward(self, value: Tensor) -> Tensor:
        return ((value - self.offset) / self.scale).float()

    def back(self, value: Tensor) -> Tensor:
        return self.offset + self.scale * value.double()


class _Update(nn.Module):
    def __init__(self, encoder: Encoder, about: Description) -> None:
        super().__init__()
        self.encoder = encoder
        spaces = about.observation.affine, about.action.affine, about.reward.affine
        self.observation, self.action, self.reward = map(_Scaled, spaces)

    def forward(
        self, statistics: Tensor, observation: Tensor, action: Tensor, reward: Tensor, next_observation: Tensor
    ) -> tuple[Tensor, ...]:
        seen, following = self.observation(observation), self.observation(next_observation)
        context = torch.cat([seen, self.action(action), following, self.reward(reward).unsqueeze(-1)], -1)
        statistics = statistics + self.encoder.statistics(context)
        if not isinstance(self.encoder, GuardedEncoder):
            return (statistics,)
        return statistics, self.encoder.familiarity.unfamiliarity(self.encoder.split(statistics)[1])


class _Act(nn.Module):
    def __init__(self, policy: ContextPolicy, encoder: Encoder, about: Description) -> None:
        super().__init__()
        self.policy, self.encoder = policy, encoder
        self.observation, self.action = _Scaled(about.observation.affine), _Scaled(about.action.affine)
        self.low, self.high = (torch.from_numpy(end) for end in about.action.bounds)
        self.draws_z = bool(encoder.belief(_nothing(encoder, policy)).variance.any())

    def forward(self, statistics: Tensor, observation: Tensor, *noises: Tensor) -> Tensor:
        z, variance = self.encoder.belief(statistics)
        left = [*noises]
        if self.draws_z:
            z = z + variance.sqrt() * left.pop(0)
        action = self.policy.decide(self.observation(observation), z, left[0] if left else z)
        return torch.clamp(self.action.back(action).float(), self.low, self.high)


def _nothing(encoder: Encoder, policy: ContextPolicy) -> Tensor:
    """Statistics `[1, S]` of nothing seen."""
    return torch.zeros_like(encoder.statistics(torch.zeros(1, policy.layout.context_size)))


def graphs_possible() -> bool:
    """Whether the packages that write graphs are there."""
    return all(find_spec(name) is not None for name in ("onnx", "onnxscript"))


def check_possible() -> None:
    """Raise PolicyError, naming the packages, where they are not."""
    if not graphs_possible():
        remedy = "pip install onnx onnxscript, or write the policy without them (--no-onnx)"
        raise PolicyError(f"ONNX graphs need the packages onnx and onnxscript, which are not here: {remedy}.")


@torch.no_grad()
def write_graphs(
    folder: Path, policy: ContextPolicy, about: Description, familiarity: Familiarity | None
) -> dict[Literal["update", "act"], Graph]:
    """Write update.onnx and act.onnx; their inputs and outputs. Raises PolicyError for what cannot be written."""
    encoder = policy.encoder if familiarity is None else GuardedEncoder(policy.encoder, familiarity, None)
    sizes, number = policy.layout, 2  # rows that are traced; in the graphs it is n
    statistics = _nothing(encoder, policy).repeat(number, 1)
    observation = torch.zeros(number, sizes.observation_size).double()
    seen = {
        "statistics": statistics,
        "observation": observation,
        "action": torch.zeros(number, sizes.action_size).double(),
        "reward": torch.zeros(number).double(),
        "next_observation": observation + 1,
    }
    update, act = _Update(encoder, about), _Act(policy, encoder, about)
    needed = {"statistics": statistics, "observation": observation}
    if act.draws_z:
        needed["z_noise"] = torch.zeros(number, about.inference.embedding_size)
    if policy.noise_shape:
        needed["noise"] = torch.zeros(number, *policy.noise_shape)
    outputs = ["statistics", "unfamiliarity"][: 1 if familiarity is None else 2]
    return {
        "update": _write(folder / UPDATE, update, seen, [f"new_{outputs[0]}", *outputs[1:]]),
        "act": _write(folder / ACT, act, needed, ["action"]),
    }


def _write(path: Path, module: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> Graph:
    number = torch.export.Dim("n", min=1)
    dynamic: list[Any] = [{0: number} for _ in inputs]
    if isinstance(module, _Act):
        dynamic = [*dynamic[:2], tuple(dynamic[2:])] if dynamic[2:] else dynamic
    found = module.eval()(*inputs.values())
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple(dynamic),
            dynamo=True,
            external_data=False,
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    if fixed := [v.name for v in program.model.graph.inputs if v.shape is not None and isinstance(v.shape[0], int)]:
        # An operation that the exporter knows for one number of rows alone makes it do so without a word.
        raise PolicyError(f"{path.name} cannot be written: the exporter fixes the number of entities in {fixed[0]}.")
    made = [found] if isinstance(found, Tensor) else list(found)
    parts = inputs.items(), zip(outputs, made, strict=True)
    return Graph(*({name: (_TYPES[t.dtype], ["n", *t.shape[1:]]) for name, t in part} for part in parts))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's words about its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
