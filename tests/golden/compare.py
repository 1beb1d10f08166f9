"""Golden traces as numbers: to sum up, to keep in traces.json, and to compare with what the code computes today."""

from __future__ import annotations

import json
import math
import platform
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

FILE = Path(__file__).with_name("traces.json")
COMMAND = "python -m tests.golden"

Sums = list[float]
"""Count, sum, sum of absolute values."""


@dataclass
class Golden:
    """What traces.json holds."""

    versions: dict[str, int]
    """Of every stage."""
    traces: dict[str, Sums]
    """By name, `run/stage/what`."""
    made_with: dict[str, str] = field(default_factory=dict)
    """Libraries and processor: they round differently, and who looks for a reason should know."""

    def write(self, path: Path = FILE) -> None:
        """Write it, one trace a line."""
        blocks = []
        for name, block in (("made with", self.made_with), ("versions", self.versions), ("traces", self.traces)):
            lines = [f"  {json.dumps(key)}: {json.dumps(block[key])}" for key in sorted(block)]
            blocks.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
        path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")

    @classmethod
    def read(cls, path: Path = FILE) -> Golden:
        """What `write` wrote."""
        found = json.loads(path.read_text())
        return cls(found["versions"], found["traces"], found["made with"])


def sums(value: Any) -> Sums:
    """Count, sum and sum of absolute values of all numbers in `value`; NaN and None count, but add nothing."""
    flat = np.concatenate([np.zeros(0), *_leaves(value)])
    found = np.nan_to_num(flat, nan=0.0, posinf=math.inf, neginf=-math.inf)
    return [flat.size, *(float(f"{total:.9g}") for total in (found.sum(), np.abs(found).sum()))]


def _leaves(value: Any) -> Iterable[np.ndarray]:
    """Every tensor, array and number in it, flat, as float64."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        plain = value.numpy() if isinstance(value, torch.Tensor) else math.nan if value is None else value
        yield np.asarray(plain, dtype=np.float64).reshape(-1)


def here() -> dict[str, str]:
    """What this process computes with."""
    libraries = {name: version(name) for name in ("torch", "numpy", "mujoco")}
    capability = torch.backends.cpu.get_cpu_capability()
    return {**libraries, "processor": f"{platform.machine()} {capability}", "model": _model()}


def _model() -> str:
    """Which processor this is and what it can do, by the lines of /proc/cpuinfo that say so; "" without that file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in text.splitlines())
    lines = {name.strip(): value.strip() for name, _, value in pairs}
    words = [lines.get(name, "") for name in ("vendor_id", "cpu family", "model", "stepping")]
    return " ".join([*words, f"{zlib.crc32(lines.get('flags', '').encode()):08x}"])


def equal(expected: Sums, found: Sums, exact: bool = False) -> bool:
    """Whether two traces agree: up to rounding, or in every digit."""
    tolerance = 0.0 if exact else 1e-4 * expected[2] + 1e-6
    return expected[0] == found[0] and all(
        a == b or abs(a - b) <= tolerance for a, b in zip(expected[1:], found[1:], strict=True)
    )


@dataclass
class Comparison:
    """What is not as recorded, by stage, in the order of the stages."""

    changed: dict[str, list[str]]
    """Traces with other numbers, as lines for people."""
    other: dict[str, list[str]]
    """Traces that only one side has, as lines for people."""
    versions: dict[str, tuple[int | None, int | None]]
    """Recorded and found, where they differ."""
    unversioned: list[str]
    """Stages with other numbers of their own making, and with the version recorded for the old ones."""

    @property
    def empty(self) -> bool:
        """Whether all is as recorded."""
        return not (self.changed or self.other or self.versions)


def compare(recorded: Golden, found: Golden, stages: Mapping[str, tuple[str, ...]]) -> Comparison:
    """Hold what the code computes against the record; `stages` says what each stage reads.

    With the record's own libraries and processor every digit counts: other rounding is another training after a
    thousand updates, under the same key.
    """
    exact = recorded.made_with == found.made_with
    changed: dict[str, list[str]] = defaultdict(list)
    other: dict[str, list[str]] = defaultdict(list)
    moved: set[tuple[str, str]] = set()
    for name in sorted(recorded.traces | found.traces):
        expected, got = recorded.traces.get(name), found.traces.get(name)
        run, stage = name.split("/")[:2]
        if expected is None or got is None:
            other[stage].append(f"{name}: {'not recorded' if expected is None else 'recorded, but no longer made'}")
        elif not equal(expected, got, exact):
            changed[stage].append(f"{name}: expected {_words(expected)}, found {_words(got)}")
            moved.add((run, stage))
    versions = {
        stage: (recorded.versions.get(stage), found.versions.get(stage))
        for stage in recorded.versions | found.versions
        if recorded.versions.get(stage) != found.versions.get(stage)
    }
    order = [*stages, *sorted((changed.keys() | other.keys()) - stages.keys())]
    unversioned = [stage for stage in order if _at_fault(stage, moved, versions, stages)]
    return Comparison(
        {stage: changed[stage] for stage in order if stage in changed},
        {stage: other[stage] for stage in order if stage in other},
        versions,
        unversioned,
    )


def _at_fault(
    stage: str, moved: set[tuple[str, str]], versions: Mapping[str, Any], stages: Mapping[str, tuple[str, ...]]
) -> bool:
    """Whether numbers changed (`moved`: run and stage) that no input explains, under the version of the old ones.

    Other inputs make other numbers, and artefacts' keys follow their inputs: only the first stage is to blame.
    """
    before = upstream(stage, stages)
    return not versions.keys() & {stage, *before} and any(
        own == stage and not any((run, source) in moved for source in before) for run, own in moved
    )


def upstream(stage: str, stages: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Every stage that `stage` reads, directly or not."""
    read = set(stages.get(stage, ()))
    return read.union(*(upstream(source, stages) for source in read))


def _words(trace: Sums) -> str:
    return f"{trace[0]:g} numbers, sum {trace[1]:.9g}, of absolute values {trace[2]:.9g}"


def explain(comparison: Comparison, recorded: Golden, found: Golden) -> str:
    """The failure message: what to do first, then every difference, by stage."""
    lines = [
        f"The numbers of `{stage}` changed but its version did not: raise it, then `{COMMAND}`."
        for stage in comparison.unversioned
    ]
    for stage, (was, now) in comparison.versions.items():
        lines.append(f"The version of `{stage}` is {now}, the record is of {was}: regenerate with `{COMMAND}`.")
    if comparison.other and not lines:
        lines.append(f"The traces are not those of the record: regenerate with `{COMMAND}`.")
    differing = sorted(
        f"{name} {recorded.made_with.get(name)} then, {now} now"
        for name, now in found.made_with.items()
        if recorded.made_with.get(name) != now
    )
    if differing and comparison.changed:
        lines.append(f"The record was made with other tools, which may be the reason: {'; '.join(differing)}.")
    for stage in dict.fromkeys([*comparison.changed, *comparison.other]):
        of_stage = [*comparison.changed.get(stage, []), *comparison.other.get(stage, [])]
        lines += ["", f"{stage} ({len(of_stage)}):", *(f"  {line}" for line in of_stage)]
    return "\n".join(lines)
