"""What a stage is: a frozen specification, a function that makes its artefact, and a version."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from mbml import envs
from mbml.envs.logged import LoggedFamily
from mbml.serialise import SerialiseError, load_tree, save_tree
from mbml.settings import decisive
from mbml.training import Process

CHECKPOINT_SECONDS = 60.0
CHECKPOINT = "checkpoint.safetensors"


class Ref(NamedTuple):
    """An artefact: where it is in the store, and what decides that."""

    stage: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What every learner of a stack of tasks, side by side, is told."""

    env: str
    tasks: tuple[int, ...]
    device: str = "cpu"
    cuda_graphs: bool = False


class Run:
    """What a stage's function gets beside its specification: where to write, what it reads, and how to report."""

    def __init__(
        self,
        out: Path,
        inputs: Mapping[Ref, Path],
        device: str = "cpu",
        upload: Callable[[], None] = lambda: None,
        report: Callable[..., None] = lambda done, total, unit, **metrics: None,
        watch: Callable[[Path], None] = lambda out: None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        """`upload` copies what is in `out` to a remote store; `watch` hears of `out` whenever a process advanced."""
        self.out, self.inputs, self.device, self.report = out, inputs, device, report
        self.checkpoint_seconds = checkpoint_seconds
        self._upload, self._watch = upload, watch
        self._checkpoint = out / CHECKPOINT

    def paths(self, refs: Iterable[Ref]) -> list[Path]:
        """Local folders of artefacts that the stage reads, in order."""
        return [self.inputs[ref] for ref in refs]

    @property
    def resumes(self) -> bool:
        """Whether an earlier try left a checkpoint, from which `train` goes on; to be asked before that."""
        return self._left is not None

    @cached_property
    def _left(self) -> Any:
        """The state in that checkpoint, read once; None where there is none. With a damaged one goes all that the try
        left: the job begins anew."""
        if self._checkpoint.exists():
            try:
                return load_tree(self._checkpoint, checked=True)
            except SerialiseError:
                for path in self.out.glob("[!.]*"):  # not the lock
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return None

    def train(self, process: Process) -> None:
        """Advance a process to its end, saving its state every `checkpoint_seconds`; go on from one that is there."""
        if self.resumes:
            process.load_state_dict(self._left)
            self._left = None  # as large as a learner and its rows
        self.report(process.done, process.total, process.unit)
        saved = time.monotonic()
        while process.done < process.total:
            metrics = process.advance()
            self.report(process.done, process.total, process.unit, **metrics)
            self._watch(self.out)
            if time.monotonic() - saved >= self.checkpoint_seconds:
                save_tree(self._checkpoint, process.state_dict(), checked=True)
                self._upload()
                saved = time.monotonic()

    def discard(self) -> None:
        """Take the checkpoint out of the finished artefact."""
        self._checkpoint.unlink(missing_ok=True)


@dataclass(frozen=True)
class Stage:
    """One kind of artefact."""

    name: str
    version: int
    """Raised when the code changes what it computes, so that older artefacts are not taken for its result."""
    make: Callable[[Any, Run], dict[str, Any]]
    """Writes the artefact's files and returns metrics (finite numbers)."""


STAGES: dict[type, Stage] = {}
"""By the type of the specification; a module of `actors.stages` enters its own when it is imported."""


def stage(*, version: int) -> Callable[[Callable[[Any, Run], dict[str, Any]]], Callable[[Any, Run], dict[str, Any]]]:
    """Register a function `make(spec, run)` under its own name, for specifications of its first parameter's type."""

    def register(make: Callable[[Any, Run], dict[str, Any]]) -> Callable[[Any, Run], dict[str, Any]]:
        STAGES[next(iter(get_type_hints(make).values()))] = Stage(make.__name__, version, make)
        return make

    return register


@dataclass(frozen=True)
class Job:
    """One artefact to make; all but the name and the processors follows from the specification."""

    spec: Any
    """A frozen dataclass of numbers, strings, Refs, and dataclasses, tuples and mappings of them."""
    name: str
    """For people: shown in the log and the Ray dashboard."""
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    @property
    def stage(self) -> Stage:
        """The stage that makes it."""
        return STAGES[type(self.spec)]

    @property
    def device(self) -> str:
        """Where it must run, because a GPU rounds otherwise."""
        return getattr(self.spec, "device", "cpu")

    @cached_property
    def ref(self) -> Ref:
        """The artefact. Its key changes with the version, the specification and its inputs, and with nothing else."""
        decides = {"stage": self.stage.name, "version": self.stage.version, "spec": self.spec}
        # A family from outside this project can change while its name stays.
        family = envs.get(self.spec.env) if hasattr(self.spec, "env") else None
        decides |= {"fingerprint": family.fingerprint} if family and family.fingerprint else {}
        if isinstance(family, LoggedFamily):  # whose content decides, not the folder that it is in
            decides["spec"] = decisive(self.spec) | {"env": family.name}
        text = json.dumps(decides, sort_keys=True, default=decisive)  # `asdict` copies, and took most of a plan's time
        return Ref(self.stage.name, hashlib.sha256(text.encode()).hexdigest()[:16])

    @cached_property
    def inputs(self) -> tuple[Ref, ...]:
        """The artefacts that it reads, each once."""
        return tuple(dict.fromkeys(_refs(vars(self.spec))))

    def description(self) -> dict[str, Any]:
        """For the artefact's manifest."""
        return {"name": self.name, "version": self.stage.version, "spec": asdict(self.spec)}


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _refs(entry)
    elif is_dataclass(value):
        yield from _refs(vars(value))
