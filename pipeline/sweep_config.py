"""A sweep as a YAML file: what is compared. A mistake in it is one sentence that says what would be right."""

import itertools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mbml.methods import METHODS, Variant
from mbml.reading import read_yaml
from mbml.registry import UnknownName
from mbml.settings import Count, Positive, Whole, changed, hint_at, hints, unknown, validated
from pipeline.config import ConfigError, Method, RunConfig
from pipeline.search import OBJECTIVES, Domain, Point, domain, drawn

FOLDER = Path(__file__).resolve().parents[1] / "tune_configs"
_FIXED = ("env", "preset", "train_tasks", "test_tasks", "methods", "distill_seeds")
"""What all variants of a sweep must share."""
_MOST = 5_000
"""Variants of a sweep; each takes some milliseconds before anything starts, and minutes at least after that."""


@dataclass(frozen=True)
class Sweep:
    """What is compared: every method with every point of grid and search, every single change and every seed."""

    name: str
    description: str = ""
    """One line for the report."""
    methods: tuple[Method, ...] = ("full",)
    """Methods to compare."""
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values to try, by dotted path in the configuration."""
    alone: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The same, but each value by itself beside the point that changes nothing: an ablation, one thing at a time."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """One learner per seed and variant, from the same data and teachers."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the configuration for all of them, by dotted path."""
    search: Mapping[str, Domain] = field(default_factory=dict)
    """What to draw values from, by dotted path; every point of it is crossed with every point of the grid."""
    samples: Count = 10
    """Points of the search."""
    search_seed: Whole = 0
    """Seed of the search: the same one finds the same points."""
    searcher: Literal["random", "optuna"] = "random"
    """Draw all points at once, or let Optuna (its own package) suggest them round by round."""
    objective: Literal["train_return", "train_worst"] = "train_return"
    """What Optuna and asha go by, at the last evaluation so far: return on the training tasks, their mean or the worst.
    Unseen tasks play no part in any choice."""
    scheduler: Literal["none", "asha"] = "none"
    """Let all trials end, or stop poor ones early by asynchronous successive halving."""
    max_concurrent: Count | None = None
    """Trials at the same time; by default as many as there is room for. Optuna's rounds have so many (else 8)."""
    time_budget: Positive | None = None
    """Seconds after which trials are stopped; the same command goes on with them."""
    drawn: tuple[Point, ...] = ()
    """Points of the search so far; not in the file."""

    def variants(self) -> list[Variant]:
        """The variants in order: methods outermost, then the grid, the search innermost, single changes after them."""
        grid = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        points = [place | point for place in grid for point in self.drawn or [{}]]
        if self.alone and {} not in points:
            points.insert(0, {})
        points += [{path: value} for path, values in self.alone.items() for value in values]
        result = []
        for method, point in itertools.product(self.methods, points):
            words = [f"{self._word(path)}={_short(value)}" for path, value in point.items()]
            if len(self.methods) > 1 or not point:
                words.insert(0, method)
            result.append(Variant(", ".join(words), method, point))
        return result

    def _word(self, path: str) -> str:
        """The shortest end of a path that no other path has."""
        parts, others = path.split("."), {*self.grid, *self.alone, *self.search} - {path}
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), path)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def names() -> list[str]:
    """The sweeps that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_sweep(name: str) -> Sweep:
    """The sweep of a name, or of a path that ends in .yaml.

    Raises ConfigError, one sentence with the file and the field, for anything that cannot be meant.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not os.path.exists(path):  # also False for a name that is too long
        what = f"file {name}" if path.parent != FOLDER else f"sweep {name!r}"
        raise ConfigError(f"There is no {what}; choose {', '.join(names())}, or give a YAML file.")
    found = read_yaml(path, ConfigError)
    try:
        return _sweep(path.stem, found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _sweep(name: str, found: Any) -> Sweep:
    valid = {key: hint for key, hint in hints(Sweep).items() if key not in ("name", "drawn")}
    for key in _mapping(found).keys() - valid:
        raise ConfigError(unknown(key, valid))
    grid, alone, changes = (_mapping(found.pop(part, {})) for part in ("grid", "alone", "set"))
    grid, alone = (
        {path: validated(path, tuple[_type_at(path), ...], values) for path, values in part.items()}
        for part in (grid, alone)
    )
    changes = {path: validated(path, _type_at(path), value) for path, value in changes.items()}
    search = {path: domain(path, _type_at(path), value) for path, value in _mapping(found.pop("search", {})).items()}
    for path in [path for path, values in [*grid.items(), *alone.items()] if not values]:
        raise ConfigError(f"{path} has no values; give a list such as [1, 2].")
    if str(found.get("objective", "")).startswith("test"):
        raise ConfigError(f"objective is {found['objective']!r}; nothing may be chosen by unseen tasks: give one of "
                          f"{', '.join(OBJECTIVES)}.")  # fmt: skip
    own = {key: validated(key, valid[key], value) for key, value in found.items()}
    sweep = Sweep(name, grid=grid, alone=alone, set=changes, search=search, **own)
    if not sweep.methods or len(set(sweep.methods)) < len(sweep.methods):
        raise ConfigError(f"methods: give one or more, each once; there are {', '.join(METHODS)}.")
    if twice := [path for path in search if path in grid or path in alone]:
        raise ConfigError(f"{twice[0]} is in search and in grid or alone; give it once.")
    if needless := [key for key in ("samples", "search_seed", "searcher") if key in found and not search]:
        raise ConfigError(f"{needless[0]} is about a search; give one, such as search: {{distill.margin: ...}}.")
    points = math.prod(map(len, grid.values())) * (sweep.samples if search else 1) + sum(map(len, alone.values()))
    if (number := points * len(sweep.methods)) > _MOST:
        fault = f"samples, grid, alone and methods make {number:,} variants"
        raise ConfigError(f"{fault}; a sweep has at most {_MOST:,}, so give fewer samples or values.")
    if sweep.searcher == "random":
        return replace(sweep, drawn=tuple(drawn(search, sweep.samples, sweep.search_seed))) if search else sweep
    if grid or alone or len(sweep.methods) > 1 or sweep.scheduler != "none":
        raise ConfigError("searcher optuna searches for one method, without grid, alone or scheduler; leave them out.")
    return sweep


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError("expected lines such as 'name: value'.")
    return value


def _type_at(path: str) -> Any:
    """The type of the field at a dotted path, if a sweep may change it."""
    if path in _FIXED:
        raise ConfigError(f"{path} must be the same in the whole sweep.")
    if is_dataclass(hint := hint_at(RunConfig, path)):
        raise ConfigError(unknown(path, [f"{path}.{name}" for name in hints(hint)]))  # pyright: ignore[reportArgumentType]
    return hint


def sweep_defaults(sweep: Sweep, config: RunConfig) -> RunConfig:
    """The configuration that the sweep starts from: its methods, seeds and settings, one processor a trial.

    Learners this small gain less from a second thread than from a second learner beside them.
    """
    own = {"methods": sweep.methods, "distill_seeds": sweep.seeds, "distill_cpus": 1}
    return changed(config, own | dict(sweep.set))


def runnable(sweep: Sweep, config: RunConfig, log: Callable[[str], None]) -> list[Variant]:
    """The variants of `config.methods` that can be run in its environment; `log` hears which methods that rules out.

    Raises ConfigError for a value that cannot be run, and where no method is left.
    """
    changed(config, {"methods": ("full",)}).check()  # every fault but one of a method
    possible, refusal = [], "methods is empty; give one or more, each once."
    for method in dict.fromkeys(config.methods):
        try:
            changed(config, {"methods": (method,)}).check()
            possible.append(method)
        except ConfigError as error:
            if method not in METHODS:
                raise
            refusal = str(error)
            log(f"left out {method}: {refusal}")
    if not possible:
        raise ConfigError(refusal)
    kept = replace(sweep, methods=tuple(possible)).variants()
    found: dict[RunConfig, Variant] = {}
    for variant in kept:
        try:
            own = changed(config, {"methods": (variant.method,), **variant.all_changes()})
        except UnknownName as error:
            raise ConfigError(f"{sweep.name}, {variant.label}: {error}") from None
        own.check()
        if (first := found.setdefault(own, variant)) is not variant:
            log(f"left out {variant.label}: here it is the same as {first.label}.")
    return list(found.values())
