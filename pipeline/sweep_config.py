"""A sweep as a YAML file: what is compared. A mistake in it is one sentence with its line and what would be right."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from mbml.methods import METHODS, Variant
from mbml.settings import Whole, changed, hints, in_words
from pipeline.config import ConfigError, Method, RunConfig

FOLDER = Path(__file__).resolve().parents[1] / "tune_configs"
_FIXED = ("env", "preset", "train_tasks", "test_tasks", "methods", "distill_seeds")
"""What all variants of a sweep must share."""


@dataclass(frozen=True)
class Sweep:
    """What is compared: every method with every point of the grid and every seed."""

    name: str
    description: str = ""
    """One line for the report."""
    methods: tuple[Method, ...] = ("full",)
    """Methods to compare."""
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values to try, by dotted path in the configuration."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """One learner per seed and variant, from the same data and teachers."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the configuration for all of them, by dotted path."""
    asha: bool = False
    """Stop poor trials early by asynchronous successive halving on the return on training tasks."""

    def variants(self) -> list[Variant]:
        """The variants in order: methods outermost, the last grid field innermost."""
        points = itertools.product(*([(path, value) for value in values] for path, values in self.grid.items()))
        several = len(self.methods) > 1
        result = []
        for method, point in itertools.product(self.methods, list(points)):
            words = ([method] if several or not point else []) + [
                f"{path.rpartition('.')[2]}={_short(value)}" for path, value in point
            ]
            result.append(Variant(", ".join(words), method, dict(point)))
        return result


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def names() -> list[str]:
    """The sweeps that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_sweep(name: str) -> Sweep:
    """The sweep of a name, or of a path that ends in .yaml.

    Raises ConfigError, one sentence with file and line, for anything that cannot be meant.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"There is no sweep {name!r}; choose {', '.join(names())}, or give a YAML file.") from None
    try:
        found = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: this is not YAML ({error.problem}).") from None
    key = ""
    try:
        valid = [item.name for item in fields(Sweep) if item.name != "name"]
        for key in _mapping(found).keys() - valid:
            raise ConfigError(_unknown(key, valid))
        own = {name: found[name] for name in found.keys() - {"grid", "set"}}
        own = {(key := name): _validated(name, hints(Sweep)[name], value) for name, value in own.items()}
        for part, several in (("grid", True), ("set", False)):
            own[part] = {}
            for key, value in _mapping(found.get(part, {})).items():
                own[part][key] = _at_path(key, value, several)
        sweep = Sweep(path.stem, **own)
        key = "methods"
        if not sweep.methods or len(set(sweep.methods)) < len(sweep.methods):
            raise ConfigError(f"give one or more methods, each once; the methods are {', '.join(METHODS)}.")
    except ConfigError as error:
        raise ConfigError(f"{path}{_line(text, key)}: {error}") from None
    return sweep


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands in a mapping a second time, which YAML's would silently let win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} stands here a second time", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError("expected lines such as 'name: value'.")
    return value


def _at_path(path: str, value: Any, several: bool) -> Any:
    """The value, or several, of the configuration's field at a dotted path."""
    if path in _FIXED:
        raise ConfigError(f"{path} must be the same in the whole sweep.")
    hint = _type_at(path)
    found = _validated(path, tuple[hint, ...] if several else hint, value)
    if several and not found:
        raise ConfigError(f"{path} has no values; give a list such as [1, 2].")
    return found


def _type_at(path: str) -> Any:
    """The type of the configuration's field at a dotted path."""
    hint: Any = RunConfig
    parts = path.split(".")
    for depth, part in enumerate(parts):
        valid = _fields(hint)
        if part not in valid:
            raise ConfigError(_unknown(path, [".".join([*parts[:depth], name]) for name in valid]))
        hint = valid[part]
        if get_origin(hint) is Annotated and is_dataclass(get_args(hint)[0]):
            hint = get_args(hint)[0]
    if valid := _fields(hint):
        raise ConfigError(_unknown(path, [f"{path}.{name}" for name in valid]))
    return hint


def _fields(hint: Any) -> dict[str, Any]:
    """Types of the fields, by name, of what is a configuration."""
    return hints(hint) if is_dataclass(hint) else {}  # pyright: ignore[reportArgumentType]


def _validated(name: str, hint: Any, value: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = f" (entry {first['loc'][0]})" if first["loc"] and isinstance(first["loc"][0], int) else ""
        raise ConfigError(f"{name}{where} is {first['input']!r}; it should be {in_words(error)}.") from None


def _unknown(key: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(key, valid, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"there is no field {key!r}; {hint}Valid: {', '.join(valid)}."


def _line(text: str, key: str) -> str:
    """Where a key stands, for a message."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*{re.escape(key)}\s*:", line):
            return f", line {number}"
    return ""


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
    refused: dict[str, str] = {}
    for method in config.methods:
        try:
            changed(config, {"methods": (method,)}).check()
        except ConfigError as error:
            if method not in METHODS:
                raise
            refused[method] = str(error)
    if len(refused) == len(config.methods):
        raise ConfigError(next(iter(refused.values()), "methods is empty; give one or more, each once."))
    for method, sentence in refused.items():
        log(f"left out {method}: {sentence}")
    possible = tuple(method for method in dict.fromkeys(config.methods) if method not in refused)
    kept = replace(sweep, methods=possible).variants()
    for variant in kept:
        changed(config, {"methods": (variant.method,), **variant.all_changes()}).check()
    return kept
