"""`policy.json`: everything about a policy in a folder that is no weight, and its form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from mbml.policy import PolicyError, in_short
from mbml.reading import regular
from mbml.serialise import json_of
from mbml.settings import Count, Positive, Whole

POLICY, DESCRIPTION, CARD = "policy.safetensors", "policy.json", "README.md"
FAMILIARITY = "familiarity.safetensors"
UPDATE, ACT = "update.onnx", "act.onnx"

Finite = Annotated[float, Field(allow_inf_nan=False)]
File = Literal["policy.safetensors", "familiarity.safetensors", "update.onnx", "act.onnx"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_LARGEST = float(np.finfo(np.float32).max)
_MOST_BYTES = 64 * 1024**2
"""Of policy.json; one of 10,000 training tasks with 60 numbers each takes a quarter."""


class Affine(NamedTuple):
    """A user's numbers and the network's: network = (user - offset) / scale, column by column (float64)."""

    offset: np.ndarray
    scale: np.ndarray

    def to_network(self, value: np.ndarray) -> np.ndarray:
        """The network's numbers, float32."""
        return ((value - self.offset) / self.scale).astype(np.float32)

    def to_user(self, value: np.ndarray) -> np.ndarray:
        """The user's numbers, float32."""
        return (self.offset + self.scale * value).astype(np.float32)


@dataclass(frozen=True)
class Space:
    """What an observation or an action is made of, number by number, in the user's units."""

    offset: list[Finite]
    """network = (user - offset) / scale."""
    scale: list[Positive]
    low: list[Finite | None]
    """Least values; None where there is none that is known."""
    high: list[Finite | None]
    names: list[str] | None = None
    units: list[str] | None = None

    def __post_init__(self) -> None:
        lengths = {len(part) for part in asdict(self).values() if part is not None}
        if len(lengths) > 1:
            raise ValueError(f"its lists have {', '.join(map(str, sorted(lengths)))} entries; all need as many")
        ends = [*zip(self.low, self.high, strict=True)]
        if any(low is not None and high is not None and low > high for low, high in ends):
            raise ValueError("a least value is above the greatest one; low should be at most high")
        reach = [abs(offset) + scale for offset, scale in zip(self.offset, self.scale, strict=True)]
        if any(abs(number) > _LARGEST for number in (*reach, *chain(*ends)) if number is not None):
            raise ValueError("low, high, and offset with scale added or subtracted should fit into float32")

    @property
    def size(self) -> int:
        """Numbers in it."""
        return len(self.offset)

    @property
    def affine(self) -> Affine:
        """Its scaling."""
        return Affine(np.array(self.offset), np.array(self.scale))

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest values, float32; infinite where none is known."""
        ends = ((self.low, -np.inf), (self.high, np.inf))
        low, high = (np.array([end if v is None else v for v in part], np.float32) for part, end in ends)
        return low, high


def identity(size: int, bound: float | None = None) -> Space:
    """So many numbers that the network takes as they are, from -bound to bound."""
    low = None if bound is None else -bound
    return Space([0.0] * size, [1.0] * size, [low] * size, [bound] * size)


@dataclass(frozen=True)
class Reward:
    """The scaling of rewards, as of a `Space`."""

    offset: Finite = 0.0
    scale: Positive = 1.0

    @property
    def affine(self) -> Affine:
        """Its scaling."""
        return Affine(np.array(self.offset), np.array(self.scale))


@dataclass(frozen=True)
class Inference:
    """How a policy gets from what it has seen to an action; `policy.safetensors` says the same."""

    policy: str
    """Kind of its networks."""
    encoder: str
    """Kind of its context encoder, one of `mbml.encoders.ENCODERS`."""
    embedding_size: Count
    statistics_size: Count
    temperature: Positive | None
    """Of the evidence for a mixture's embeddings."""
    renewed_every: Whole
    """Steps after which z is formed anew; 0: at the beginning of each episode alone."""
    arbitrated: bool
    """It plays its first episode untold, the second under its belief, then as has earned more."""
    untold: bool
    """Whether what it does with nothing seen was learned, from the teacher that is best for all training tasks."""
    noise_shape: list[Count]
    """Standard normal numbers that one action takes; []: none."""


@dataclass(frozen=True)
class TrainingTask:
    """A task that it learned from. `parameter` is JSON, or None where it is not known."""

    index: Whole
    label: str
    rows: Count
    parameter: Any = None


@dataclass(frozen=True)
class Data:
    """What it learned from; `sha256` is one of the SHA-256 of all shards in the order of tasks."""

    source: Literal["collected", "logged"]
    environment: str
    """A family of environments, or what was logged."""
    horizon: Count
    """Time limit of an episode in steps."""
    sha256: Digest
    rows: Count


@dataclass(frozen=True)
class Training:
    """How it learned; `run` is whatever else the command knows of it, JSON."""

    method: str
    about: str
    seed: Whole
    step: Whole
    run: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """Score of every task of a split, by the description's protocol, and the means of the references on them."""

    split: str
    tasks: list[str]
    returns: list[Finite]
    references: dict[str, Finite]


@dataclass(frozen=True)
class Calibration:
    """Quantiles of the misfit of stretches of held-out training rows to the best *other* training task, by the length
    of the stretch; see `mbml.deploy.familiarity`."""

    lengths: list[Count]
    reward: list[list[Finite]]
    next_observation: list[list[Finite]]

    def __post_init__(self) -> None:
        lines = len(self.lengths), len(self.reward), len(self.next_observation)
        if len(set(lines)) > 1 or not self.lengths or self.lengths[0] != 1 or self.lengths != sorted(self.lengths):
            raise ValueError("lengths should rise from 1, with a line of quantiles for each")
        widths = {len(line) for line in (*self.reward, *self.next_observation)}
        if len(widths) > 1 or widths == {0}:
            raise ValueError("all lines of quantiles should be equally long, and not empty")


@dataclass(frozen=True)
class Graph:
    """Inputs and outputs of an ONNX graph by name: element type and shape; "n" is the number of entities."""

    inputs: dict[str, tuple[str, list[int | str]]]
    outputs: dict[str, tuple[str, list[int | str]]]


@dataclass(frozen=True)
class Description:
    """policy.json."""

    schema_version: Literal[1]
    title: str
    observation: Space
    action: Space
    reward: Reward
    inference: Inference
    tasks: list[TrainingTask]
    data: Data
    training: Training
    protocol: str
    """How the scores were made, in words."""
    scores: list[Score]
    familiarity: Calibration | None
    onnx: dict[Literal["update", "act"], Graph]
    versions: dict[str, str]
    files: dict[File, Digest]
    """SHA-256 of the other files."""

    def write(self, path: Path) -> None:
        """Write it as JSON; raises PolicyError for what JSON cannot hold."""
        path.write_text(json_of(asdict(self), DESCRIPTION, PolicyError))


def read_description(path: Path) -> Description:
    """What `Description.write` wrote; raises PolicyError, one sentence, for anything else."""
    try:
        with regular(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        reason = getattr(error, "strerror", None) or in_short(error)
        raise PolicyError(f"{path.parent} is no policy folder: {DESCRIPTION} cannot be read ({reason}).") from None
    if len(content) > _MOST_BYTES:
        raise PolicyError(f"{path} is too large: it should have at most {_MOST_BYTES >> 20} MiB.")
    try:
        return TypeAdapter(Description).validate_json(content, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        words = fault["msg"].removeprefix("Value error, ")
        raise PolicyError(f"{path} is damaged or foreign{place and f' at {place}'}: {words}.") from None
