"""The scale of logged data: statistics of all tasks together, and the affine map that takes rows to it and back.

Learners take actions in [-1, 1], and observations and rewards of ordinary size. A value x of the log becomes
(x - offset) / scale, each dimension with its own numbers:

- observations: mean 0 and standard deviation 1. A constant column becomes 0 and keeps its scale.
- actions: their least and largest value become -1 and 1. Where those are not known they are estimated from the data.
- rewards: standard deviation 1. Their mean is taken off only where no transition is terminated: with an end, a constant
  added to every step would change what is best.

Every task weighs the same, however many rows it has, as in learning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from mbml.transitions import DatasetError, TransitionBatch

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_MARGIN = 0.05
"""Of the range of the data, on each side where a bound of an action is estimated."""
_CONSTANT = 1e-12
"""Spread, in parts of the size, below which rounding is all that varies."""
_LEAST = 1e-30
"""Spread below which nothing varies, for what is divided by it would not fit."""
_OVER = 1e-6
"""Parts of its range by which an action may exceed a known bound, for rounding."""


class VectorScaling(TypedDict):
    """Of each dimension: its name, and offset and scale."""

    names: list[str]
    offset: list[_Number]
    scale: list[_Above0]
    units: list[str]
    about: list[str]
    """What people should know, such as where a bound comes from."""


class RewardScaling(TypedDict):
    """Of rewards."""

    offset: _Number
    scale: _Above0


class ScalingMeta(TypedDict):
    """As it stands in meta.json."""

    observation: VectorScaling
    action: VectorScaling
    reward: RewardScaling


@dataclass(frozen=True)
class Scaling:
    """The map (x - offset) / scale of every part of a transition, and its inverse."""

    meta: ScalingMeta

    def scaled(self, batch: TransitionBatch) -> TransitionBatch:
        """From the scale of the log to that of learners, as float32; actions a rounding beyond [-1, 1] are cut."""
        parts = self._mapped(batch, lambda x, part: (x - _of(part, "offset")) / _of(part, "scale"))
        parts["action"] = parts["action"].clip(-1.0, 1.0)
        return replace(batch, **{name: part.astype(np.float32) for name, part in parts.items()})

    def restored(self, batch: TransitionBatch) -> TransitionBatch:
        """The inverse, as float64."""
        return replace(batch, **self._mapped(batch, lambda x, part: x * _of(part, "scale") + _of(part, "offset")))

    def _mapped(self, batch: TransitionBatch, change: Any) -> dict[str, np.ndarray]:
        meta = self.meta
        parts = {
            "observation": meta["observation"], "next_observation": meta["observation"],
            "action": meta["action"], "reward": meta["reward"],
        }  # fmt: skip
        return {name: change(getattr(batch, name).astype(np.float64), part) for name, part in parts.items()}

    def lines(self) -> list[str]:
        """What it does, for people: a line a part."""
        found = []
        for part, columns in (("observation", self.meta["observation"]), ("action", self.meta["action"])):
            said = [f"{name} {about}" for name, about in zip(columns["names"], columns["about"], strict=True) if about]
            found += [f"{part}: {'; '.join(said)}"] if said else []
        reward = self.meta["reward"]
        return [*found, f"reward: (r - {reward['offset']:g}) / {reward['scale']:g}"]


def _of(part: Any, name: str) -> np.ndarray:
    return np.asarray(part[name], dtype=np.float64)


class _OfTask(NamedTuple):
    """Of one task: mean and variance of observations and rewards, least and largest actions, whether it ever ends."""

    mean: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]
    low: np.ndarray
    high: np.ndarray
    ends: bool


@dataclass
class Statistics:
    """Of all tasks that were added, each with the same weight."""

    names: Mapping[str, Sequence[str]]
    """Of the dimensions of `observation` and `action`."""
    bounds: Mapping[str, tuple[float | None, float | None]]
    """Least and largest value of actions by name, where known."""
    units: Mapping[str, str] = field(default_factory=dict)
    """By name."""
    _tasks: list[_OfTask] = field(default_factory=list)

    def add(self, batch: TransitionBatch) -> None:
        """One more task, in the scale of the log."""
        values = {name: getattr(batch, name).astype(np.float64) for name in ("observation", "reward")}
        mean, variance = ({n: getattr(v, moment)(0) for n, v in values.items()} for moment in ("mean", "var"))
        ends = bool(batch.terminated.any())
        self._tasks.append(_OfTask(mean, variance, batch.action.min(0), batch.action.max(0), ends))

    def only(self, positions: Iterable[int]) -> Statistics:
        """Those of the tasks at these positions, in the order in which they were added."""
        return replace(self, _tasks=[self._tasks[i] for i in positions])

    def scaling(self) -> Scaling:
        """The map; raises DatasetError for an action outside its known bounds."""
        mean, deviation = self._pooled("observation")
        constant = _same(deviation, mean)
        seen = self._vector("observation", mean, np.where(constant, 1.0, deviation))
        seen["about"] = ["is constant" if same else "" for same in constant]
        low, high = np.min([t.low for t in self._tasks], 0), np.max([t.high for t in self._tasks], 0)
        limits = list(map(self._limits, self.names["action"], low, high))
        low, high = (np.array([limit[side] for limit in limits]) for side in (0, 1))
        done = self._vector("action", (low + high) / 2, (high - low) / 2)
        done["about"] = [about for *_, about in limits]
        return Scaling(ScalingMeta(observation=seen, action=done, reward=self._reward()))

    def _pooled(self, name: str) -> tuple[Any, Any]:
        means = np.stack([task.mean[name] for task in self._tasks])
        mean = means.mean(0)
        return mean, np.sqrt((np.stack([t.variance[name] for t in self._tasks]) + (means - mean) ** 2).mean(0))

    def _vector(self, part: str, offset: np.ndarray, scale: np.ndarray) -> VectorScaling:
        names = list(self.names[part])
        units = [self.units.get(name, "") for name in names]
        return VectorScaling(names=names, offset=offset.tolist(), scale=scale.tolist(), units=units, about=[])

    def _reward(self) -> RewardScaling:
        mean, deviation = self._pooled("reward")
        ends = any(task.ends for task in self._tasks)
        size = float(np.hypot(mean, deviation)) if ends else float(deviation)
        scale = 1.0 if _same(size, mean) else size
        return RewardScaling(offset=0.0 if ends else float(mean), scale=scale)

    def _limits(self, name: str, least: float, most: float) -> tuple[float, float, str]:
        """What becomes -1 and 1 of one action, and how that was found."""
        low, high = self.bounds.get(name, (None, None))
        least, most = float(least), float(most)
        span = (most if high is None else high) - (least if low is None else low)
        if (low is not None and least < low - _OVER * span) or (high is not None and most > high + _OVER * span):
            raise DatasetError(
                f"{name} goes from {least:g} to {most:g}, beyond its bounds of {_word(low)} to {_word(high)}; give the "
                f"right ones, or leave them out to have them estimated."
            )
        if low is not None and high is not None:
            return low, high, f"from {low:g} to {high:g}, as given"
        if low is high is None and least >= -1 and most <= 1 and most - least > 1:
            return -1.0, 1.0, f"taken to go from -1 to 1, for it goes from {least:g} to {most:g}"
        size = max(abs(least), abs(most))
        margin = max(1.0, _MARGIN * size) if _same(span, size) else _MARGIN * span
        found = (least - margin if low is None else low), (most + margin if high is None else high)
        sides = " and ".join(side for side, known in (("least", low), ("largest", high)) if known is None)
        return *found, f"taken to go from {found[0]:g} to {found[1]:g}, the {sides} value estimated"


def _same(spread: Any, size: Any) -> Any:
    """Whether values of that size and spread are constant."""
    return spread <= np.maximum(_CONSTANT * np.abs(size), _LEAST)


def _word(bound: float | None) -> str:
    return "no bound" if bound is None else f"{bound:g}"
