"""Measure rows: all competitors of a row are started, then take turns, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.process import Failed, Process, processors
from benchmarks.registry import Competitor, Row


@dataclass
class Result:
    """What one competitor answered, round by round, or why it did not."""

    competitor: Competitor
    rounds: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""


@dataclass
class Measured:
    """A row with its results; `cores` is how many processors there really were."""

    row: Row
    cores: int
    results: list[Result]


class Clock:
    """Says how far the whole measurement is and, from its pace so far, how long the rest takes."""

    def __init__(self, total: int, log: Callable[[str], None]) -> None:
        self._total, self._log, self._done, self._started = total, log, 0, time.monotonic()

    def tick(self, line: str, steps: int = 1) -> None:
        """`steps` measurements are over."""
        self._done += steps
        spent = time.monotonic() - self._started
        left = spent / self._done * (self._total - self._done)
        self._log(f"{self._done}/{self._total}  {line}  about {left / 60:.0f}m{left % 60:02.0f}s left")


def measure(
    rows: Sequence[Row], *, rounds: int, seconds: float, peers_python: Path, out: Path, log: Callable[[str], None]
) -> list[Measured]:
    """Every row, one after the other. What a competitor prints is kept in `out`/log."""
    (out / "log").mkdir(parents=True, exist_ok=True)
    clock = Clock(sum(_rounds(row, rounds) * len(row.competitors) for row in rows), log)
    return [_measure_row(row, _rounds(row, rounds), seconds, peers_python, out / "log", clock) for row in rows]


def _rounds(row: Row, rounds: int) -> int:
    return min(rounds, row.rounds or rounds)


def _measure_row(row: Row, rounds: int, seconds: float, peers_python: Path, folder: Path, clock: Clock) -> Measured:
    where = processors(row.cores)
    results = [Result(competitor) for competitor in row.competitors]
    processes: list[Process | None] = []
    try:
        for number, result in enumerate(results):
            processes.append(_start(result, where, peers_python, folder / f"{row.name}-{number}.txt"))
        for turn in range(rounds):
            for result, process in zip(results, processes, strict=True):
                line = f"{row.name}, {result.competitor.label}, round {turn + 1}:"
                if process is None or result.failure:
                    clock.tick(f"{line} {result.failure}")
                    continue
                try:
                    result.rounds.append(process.measure(seconds))
                    clock.tick(f"{line} {result.rounds[-1]['value']:.4g} {row.unit}")
                except Failed as failure:
                    result.failure = str(failure)
                    clock.tick(f"{line} {result.failure}")
    finally:
        for process in processes:
            if process is not None:
                process.close()
    return Measured(row, len(where), results)


def _start(result: Result, where: Sequence[int], peers_python: Path, log: Path) -> Process | None:
    try:
        return Process(result.competitor, where, peers_python, log)
    except Failed as failure:
        result.failure = str(failure)
        return None
