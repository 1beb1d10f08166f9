"""What a user may compare: the full model, its ablations and the baselines, each as changes of one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from mbml.distill import METHODS as SWITCHES

_Config = TypeVar("_Config")
Learner = Literal["distill", "contextual_bcq", "batch_pearl", "metagenrl"]


@dataclass(frozen=True)
class Method:
    """A learner and what it changes in the configuration of the full model."""

    about: str
    """What it is, for people."""
    learner: Learner = "distill"
    """The multi-task learner, or a rival with a field of its own in the configuration."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted path in the configuration."""


def _switches(name: str) -> dict[str, Any]:
    return {f"distill.{path}": value for path, value in SWITCHES[name].items()}


ABLATIONS = {
    "full": Method("the full model: triplet loss on relabelled transitions"),
    "no_relabelling": Method("hard mining over own contexts instead (Eq. 11)", changes=_switches("no_relabelling")),
    "no_triplet": Method("relabelled contexts without the triplet loss", changes=_switches("no_triplet")),
    "neither": Method("own contexts, no triplet loss (Eq. 6)", changes=_switches("neither")),
    "ground_truth": Method("the full model, relabelled with true rewards", changes={"relabel.source": "ground_truth"}),
    "no_ensemble": Method(
        "the full model, relabelled by a single reward network without a filter",
        changes={"models.reward.members": 1, "models.next_observation.members": 1},
    ),
}
BASELINES = {
    "contextual_bcq": Method("BCQ on all tasks with an inferred z", "contextual_bcq"),
    "batch_pearl": Method("PEARL on the batches", "batch_pearl"),
    "metagenrl": Method("MetaGenRL on one batch (ant_dir, Fig. 5)", "metagenrl"),
}
METHODS = ABLATIONS | BASELINES


@dataclass(frozen=True)
class Variant:
    """One entry of a comparison: a method, with further changes of the configuration in a sweep."""

    label: str
    """Its name in tables and figures, unique in the comparison."""
    method: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted path, on top of the method's own."""

    def all_changes(self) -> dict[str, Any]:
        """The method's changes and its own."""
        return {**METHODS[self.method].changes, **self.changes}


def changed(config: _Config, changes: Mapping[str, Any]) -> _Config:
    """A copy of a (nested) frozen dataclass with the values at dotted paths replaced.

    Raises KeyError with the part of a path that is no field.
    """
    for path, value in changes.items():
        config = _replaced(config, path.split("."), value)
    return config


def _replaced(node: Any, path: list[str], value: Any) -> Any:
    if not is_dataclass(node) or path[0] not in {item.name for item in fields(node)}:
        raise KeyError(path[0])
    if len(path) > 1:
        value = _replaced(getattr(node, path[0]), path[1:], value)
    return replace(node, **{path[0]: value})  # pyright: ignore[reportArgumentType]
