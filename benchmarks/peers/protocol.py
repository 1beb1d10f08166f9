"""What every measured process does: build once, then answer each line of its input with the value of one round.

Also used by the peers' own interpreter, so it imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Measure = Callable[[float], Mapping[str, Any]]
"""Seconds to spend -> {"value": in the row's unit, and whatever else is worth keeping}."""


def rate(step: Callable[[], Any], units: float = 1.0) -> Measure:
    """Units per second of a `step` that does `units` of them; runs two first, which no round counts."""
    warm_up(step)

    def measure(seconds: float) -> dict[str, Any]:
        count, spent = repeat(step, seconds)
        return {"value": count * units / spent, "calls": count, "seconds": spent}

    return measure


def milliseconds(step: Callable[[], Any], units: float = 1.0) -> Measure:
    """Milliseconds per unit of a `step` that does `units` of them; runs two first, which no round counts."""
    warm_up(step)

    def measure(seconds: float) -> dict[str, Any]:
        count, spent = repeat(step, seconds)
        return {"value": 1000 * spent / (count * units), "calls": count, "seconds": spent}

    return measure


def warm_up(step: Callable[[], Any]) -> None:
    """Twice: compilers may see other types the second time, and optimisers make their state in the first."""
    step()
    step()


def repeat(step: Callable[[], Any], seconds: float) -> tuple[int, float]:
    """Run `step` at least once, until `seconds` are over; returns how often and how long."""
    count, started = 0, time.perf_counter()
    while True:
        step()
        count += 1
        spent = time.perf_counter() - started
        if spent >= seconds:
            return count, spent


def serve(build: Callable[..., Measure], arguments: Mapping[str, Any]) -> None:
    """Build, say "ready", then answer every number of seconds on standard input with one line of JSON."""
    # Whatever the measured program prints goes to standard error: standard output is for answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    measure = build(**arguments)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(dict(measure(float(line)))), file=answers, flush=True)


def main(build: Callable[..., Measure]) -> None:
    """`serve` with the arguments that stand as JSON on the command line: what a peer's script ends with."""
    serve(build, json.loads(sys.argv[1]))
