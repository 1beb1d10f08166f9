"""What a stage needs of a machine besides processors: memory, resources that a cluster has by name, labels."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.stage import STAGES
from mbml.settings import ConfigError

_GIB = 1024**3
_FORM = "give STAGE:memory=GIB, STAGE:resource.NAME=AMOUNT or STAGE:label.NAME=VALUE"


@dataclass(frozen=True)
class Needs:
    """By name, as Ray counts them."""

    memory: float = 0.0
    """Bytes that Ray sets aside."""
    resources: tuple[tuple[str, float], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def options(self) -> dict[str, Any]:
        """Of a Ray actor."""
        selector = {"label_selector": dict(self.labels)} if self.labels else {}
        return {"memory": self.memory or None, "resources": dict(self.resources)} | selector

    def met_by(self, node: Mapping[str, Any]) -> bool:
        """Whether a machine that `ray.nodes` lists has that."""
        has, labels = node["Resources"], node.get("Labels") or {}
        amounts = {"memory": self.memory, **dict(self.resources)}
        enough = all(has.get(name, 0.0) >= amount for name, amount in amounts.items())
        return enough and all(labels.get(name) == value for name, value in self.labels)

    def __str__(self) -> str:
        """For people; empty where nothing is needed."""
        words = [f"{self.memory / _GIB:g} GiB"] if self.memory else []
        words += [f"{amount:g} {name}" for name, amount in self.resources]
        return ", ".join([*words, *(f"{name}={value}" for name, value in self.labels)])


NOTHING = Needs()


def needs_of(words: Iterable[str]) -> dict[str, Needs]:
    """The needs of stages, from such words as `distill:memory=8`, `collect:resource.disk=1`, `teach:label.zone=a`.

    Raises ConfigError, one sentence, for a word that cannot be meant.
    """
    known = {stage.name for stage in STAGES.values()}
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        stage, _, need = word.partition(":")
        name, _, value = need.partition("=")
        kind, _, own = name.partition(".")
        if stage not in known:
            raise ConfigError(f"--needs {word}: {stage!r} is no stage; there are {', '.join(sorted(known))}.")
        of_stage = found.setdefault(stage, {"memory": 0.0, "resources": {}, "labels": {}})
        if kind == "label" and own and value:
            of_stage["labels"][own] = value
        elif kind == "resource" and own:
            of_stage["resources"][own] = _amount(word, value)
        elif name == "memory":
            of_stage["memory"] = _amount(word, value) * _GIB
        else:
            raise ConfigError(f"--needs {word}: {_FORM}.")
    return {
        stage: Needs(own["memory"], *(tuple(sorted(own[part].items())) for part in ("resources", "labels")))
        for stage, own in found.items()
    }


def _amount(word: str, value: str) -> float:
    try:
        amount = float(value)
    except ValueError:
        amount = math.nan
    if not 0 < amount < 1e6:
        raise ConfigError(f"--needs {word}: {value!r} is no amount above 0; {_FORM}.")
    return amount
