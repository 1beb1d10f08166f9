"""Frozen configurations: types whose bounds stand beside the field, checks by pydantic, changes by dotted path."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import field, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from tyro.conf import arg

# The second is for the command line's help.
Count = Annotated[int, Field(ge=1, lt=2**63), arg(metavar="INT >= 1")]
"""1, 2, 3, ..."""
Whole = Annotated[int, Field(ge=0, lt=2**63), arg(metavar="INT >= 0")]
"""0, 1, 2, ..."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), arg(metavar="FLOAT > 0")]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), arg(metavar="FLOAT >= 0")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), arg(metavar="FLOAT 0 to 1")]
"""From 0 to 1."""
Entropy = Annotated[float, Field(lt=0.69, allow_inf_nan=False), arg(metavar="FLOAT < 0.69")]
"""Of a number between -1 and 1, in nats: a uniform one has ln 2."""
Part = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), arg(metavar="FLOAT > 0, <= 1")]
"""Above 0, at most 1."""
Widths = tuple[Count, ...]
"""Units of each hidden layer."""

_Config = TypeVar("_Config")
_LATER = "later"


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says what would be right."""


def later(default: Any) -> Any:
    """A field that a configuration has had only since its artefacts are out in the world: while it has its default,
    which must be what was done before, they stay good."""
    return field(default=default, metadata={_LATER: True})


def decisive(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that decide what comes out: all but those of `later` at their defaults."""
    since, found = _defaults(type(config)), vars(config)
    return {name: value for name, value in found.items() if name not in since or value != since[name]}


@cache
def _defaults(config: type) -> dict[str, Any]:
    """The defaults of the fields that came later."""
    return {item.name: item.default for item in fields(config) if _LATER in item.metadata}


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


def check_fields(config: Any, prefix: str = "") -> None:
    """Raise ConfigError, one sentence, for the first field of a (nested) dataclass that is out of its bounds."""
    for item in fields(config):
        path, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            check_fields(value, f"{path}.")
            continue
        try:
            _adapters(type(config))[item.name].validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{path} is {value!r}; it should be {in_words(error)}.") from None


@cache
def _adapters(config: type) -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(hint) for name, hint in hints(config).items() if not is_dataclass(hint)}


def hints(config: type) -> dict[str, Any]:
    """The type of every field, bounds included."""
    return get_type_hints(config, include_extras=True)


def in_words(error: ValidationError) -> str:
    """What the first fault of a value should have been, such as "greater than or equal to 1"."""
    message = error.errors()[0]["msg"]
    return message.removeprefix("Input should be ").removeprefix("a valid ").lower()


def hint_at(config: type, path: str) -> Any:
    """The type of the field at a dotted path; raises ConfigError with the valid paths where there is none."""
    hint: Any = config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        valid = hints(hint) if is_dataclass(hint) else {}  # pyright: ignore[reportArgumentType]
        if part not in valid:
            raise ConfigError(unknown(path, [".".join([*parts[:depth], name]) for name in valid]))
        hint = valid[part]
        if get_origin(hint) is Annotated and is_dataclass(get_args(hint)[0]):
            hint = get_args(hint)[0]
    return hint


def validated(name: str, hint: Any, value: Any) -> Any:
    """A value as its type, such as a tuple for a list; raises ConfigError, one sentence, where it is not of it."""
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = f" (entry {first['loc'][0]})" if first["loc"] and isinstance(first["loc"][0], int) else ""
        raise ConfigError(f"{name}{where} is {first['input']!r}; it should be {in_words(error)}.") from None


def unknown(key: str, valid: Iterable[str]) -> str:
    """What to say of a field that there is not."""
    close = difflib.get_close_matches(key, valid := list(valid), 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"there is no field {key!r}; {hint}Valid: {', '.join(valid)}."
