"""Sizes of a run: smoke, laptop and paper, for every environment."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mbml import envs
from mbml.reading import read_yaml
from mbml.registry import PRESETS as NAMES
from mbml.settings import ConfigError, changed, hint_at, validated
from pipeline.config import LEARNERS, RunConfig


def preset(env: str, name: str) -> RunConfig:
    """The configuration of preset `name` for environment `env`: the authors' defaults, changed by presets.yaml as far
    as the environment has so many tasks and steps, then by every learner's registry entry, then by the environment.

    Raises UnknownName or ConfigError, naming the valid choices.
    """
    family = envs.get(env)
    if name not in NAMES:
        raise ConfigError(f"There is no preset {name!r}; choose one of {', '.join(NAMES)}.")
    most = {"horizon": family.horizon, **{f"{split}_tasks": len(family.tasks(split)) for split in ("train", "test")}}
    changes = {path: min(value, most[path]) if path in most else value for path, value in _stages()[name].items()}
    for learner, entry in LEARNERS.items():
        changes |= {f"{learner}.{path}": value for path, value in entry.presets.get(name, {}).items()}
    return changed(RunConfig(env=env, preset=name), changes | _typed(family.presets.get(name, {})))


@cache
def _stages() -> dict[str, dict[str, Any]]:
    """What presets.yaml changes: preset -> values by dotted path."""
    found = read_yaml(Path(__file__).with_suffix(".yaml"), ConfigError)
    return {name: _typed(changes) for name, changes in found.items()}


def _typed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path as the types of their fields: YAML has no tuples."""
    return {path: validated(path, hint_at(RunConfig, path), value) for path, value in changes.items()}
