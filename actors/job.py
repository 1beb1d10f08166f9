"""A job: one artefact to make, and everything that decides what comes out."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """What a worker needs to make the artefact (stage, key). Small: it travels to the worker by value."""

    stage: str
    """Folder of the artefact in the store, such as "bcq"."""
    name: str
    """Unique and for people, such as "bcq/umaze_goal/tasks 0-4"; shown in the log and the Ray dashboard."""
    key: str
    """Hash of the configuration and the inputs' keys; the artefact's name within its stage."""
    payload: dict[str, Any] = field(default_factory=dict)
    """Configuration: dataclasses, numbers, strings, and lists, tuples and dicts of them."""
    inputs: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    """Artefacts that the work reads: name -> [(stage, key), ...]."""

    @property
    def artefact(self) -> tuple[str, str]:
        return self.stage, self.key

    def description(self) -> dict[str, Any]:
        """The job as JSON values, for the artefact's manifest."""
        return {
            "name": self.name,
            "payload": _plain(self.payload),
            "inputs": {name: [list(ref) for ref in refs] for name, refs in self.inputs.items()},
        }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
