"""A sweep as a YAML file: what is compared. A mistake in it is one sentence with its line and what would be right."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from pipeline.config import ConfigError, PipelineConfig
from pipeline.methods import METHODS, Variant, changed

FOLDER = Path(__file__).resolve().parents[1] / "tune_configs"
_FIXED = ("env", "preset", "train_tasks", "test_tasks", "methods", "distill_seeds")
"""What all variants of a sweep must share."""


@dataclass(frozen=True)
class Sweep:
    """What is compared: every method with every point of the grid and every seed."""

    name: str
    description: str = ""
    """One line for the report."""
    methods: tuple[str, ...] = ("full",)
    """Methods to compare."""
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values to try, by dotted path in the configuration."""
    seeds: tuple[int, ...] = (0, 1, 2)
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
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return Sweep(path.stem, **_fields(path, root))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: this is not YAML ({error.problem}).") from None


def _fields(path: Path, root: yaml.Node | None) -> dict[str, Any]:
    hints = get_type_hints(Sweep)
    valid = [item.name for item in fields(Sweep) if item.name != "name"]
    found: dict[str, Any] = {}
    for key, node in _entries(path, root):
        if key.value not in valid:
            raise _unknown(path, key, valid)
        if key.value in ("grid", "set"):
            found[key.value] = _by_path(path, node, several=key.value == "grid")
        else:
            found[key.value] = _value(path, node, key.value, hints[key.value])
        if key.value == "methods":
            _check_methods(path, node, found["methods"])
    return found


def _by_path(path: Path, root: yaml.Node, *, several: bool) -> dict[str, Any]:
    """Values by dotted path, each checked against the type of the configuration's field."""
    found: dict[str, Any] = {}
    for key, node in _entries(path, root):
        if key.value in _FIXED:
            raise ConfigError(f"{_place(path, key)}: {key.value} must be the same in the whole sweep.")
        hint = _hint(path, key)
        found[key.value] = _value(path, node, key.value, tuple[hint, ...] if several else hint)
        if several and not found[key.value]:
            raise ConfigError(f"{_place(path, key)}: {key.value} has no values; give a list such as [1, 2].")
    return found


def _hint(path: Path, key: yaml.ScalarNode) -> Any:
    """The type of the configuration's field at a dotted path."""
    hint: Any = PipelineConfig
    for depth, part in enumerate(key.value.split(".")):
        valid = [item.name for item in fields(hint)] if is_dataclass(hint) else []
        if part not in valid:
            before = ".".join(key.value.split(".")[:depth])
            raise _unknown(path, key, [f"{before}.{name}" if before else name for name in valid])
        hint = get_type_hints(hint)[part]
    if is_dataclass(hint):
        raise _unknown(path, key, [f"{key.value}.{item.name}" for item in fields(hint)])
    return hint


def _value(path: Path, node: yaml.Node, name: str, hint: Any) -> Any:
    value = yaml.SafeLoader("").construct_object(node, deep=True)  # pyright: ignore[reportArgumentType]
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = f" (entry {first['loc'][0]})" if first["loc"] and isinstance(first["loc"][0], int) else ""
        raise ConfigError(
            f"{_place(path, node)}: {name}{where} is {first['input']!r}: {first['msg'].lower()}."
        ) from None


def _check_methods(path: Path, node: yaml.Node, methods: tuple[str, ...]) -> None:
    wrong = [method for method in methods if method not in METHODS]
    if wrong or not methods or len(set(methods)) < len(methods):
        said = f"there is no method {wrong[0]!r}" if wrong else "give one or more methods, each once"
        raise ConfigError(f"{_place(path, node)}: {said}; the methods are {', '.join(METHODS)}.")


def _entries(path: Path, node: yaml.Node | None) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_place(path, node)}: expected lines such as 'name: value'.")
    seen: dict[str, None] = {}
    for key, _ in node.value:
        if key.value in seen:
            raise ConfigError(f"{_place(path, key)}: {key.value} stands here a second time.")
        seen[key.value] = None
    return node.value


def _unknown(path: Path, key: yaml.ScalarNode, valid: list[str]) -> ConfigError:
    close = difflib.get_close_matches(key.value, valid, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return ConfigError(f"{_place(path, key)}: there is no field {key.value!r}; {hint}Valid: {', '.join(valid)}.")


def _place(path: Path, node: yaml.Node | None) -> str:
    return f"{path}, line {node.start_mark.line + 1}" if node is not None else str(path)


def sweep_defaults(sweep: Sweep, config: PipelineConfig) -> PipelineConfig:
    """The configuration that the sweep starts from: its methods, seeds and settings, one processor a trial.

    Learners this small gain less from a second thread than from a second learner beside them.
    """
    own = {"methods": sweep.methods, "distill_seeds": sweep.seeds, "distill_cpus": 1}
    return changed(config, own | dict(sweep.set))


def runnable(sweep: Sweep, config: PipelineConfig, log: Callable[[str], None]) -> list[Variant]:
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
