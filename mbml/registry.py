"""One registry per concept: what can be chosen by name, with its configuration, defaults and words."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

PRESETS = ("smoke", "laptop", "paper")


class UnknownName(ValueError):
    """A name that a registry does not hold; the message says which it does."""


@dataclass(frozen=True)
class Entry:
    """What every registry knows of an entry; registries of one concept add fields of their own."""

    name: str
    """As it is typed: lower case with underscores."""
    about: str
    """What it is, in half a sentence, for help and reports."""
    make: Callable[..., Any]
    """Its factory, by the contract of the concept."""
    config: type | None = None
    """Its frozen configuration, whose defaults are the authors'."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Preset -> what it changes of the configuration's defaults, by dotted path."""
    title: str = ""
    """Its name in tables and figures; by default `name`."""
    colour: str = "#5f5f5f"
    """Of its lines in every figure."""


_Entry = TypeVar("_Entry", bound=Entry)


class Registry(Mapping[str, _Entry], Generic[_Entry]):
    """Entries of one concept by name, in the order in which people should read them."""

    def __init__(self, concept: str, *entries: _Entry) -> None:
        """`concept` is the singular noun of the error message, such as "teacher"."""
        self.concept = concept
        self._entries = {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> _Entry:
        """The entry; raises UnknownName with the valid names."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName(f"There is no {self.concept} {name!r}; choose one of {', '.join(self)}.") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
