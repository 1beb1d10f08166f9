"""What a user may compare: the full model, its ablations and the baselines, each as changes of one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mbml.distill import METHODS as SWITCHES


@dataclass(frozen=True)
class Method:
    """A learner and what it changes in the configuration of the full model."""

    about: str
    """What it is, for people."""
    learner: str = "distill"
    """Name of its configuration."""
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
