"""Command line: `python -m benchmarks`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.machine import describe
from benchmarks.measure import measure
from benchmarks.ours.orchestration import of_folder
from benchmarks.process import Failed, processors
from benchmarks.profiled import profile
from benchmarks.registry import ROWS, Row
from benchmarks.table import as_json, markdown, publish

_DESCRIPTION = (
    "Measure the project beside other programs that do the same work, in one run on this machine, and write the table. "
    "Close everything else first: the competitors of a row take turns, but a busy machine slows them unevenly. "
    f"Names for --only: {', '.join(ROWS)}. Without --only: all but "
    f"{', '.join(row.name for row in ROWS.values() if not row.by_default)}, which makes a whole run. "
    "Example: python -m benchmarks --only sac bcq --rounds 3 --seconds 1"
)


_PEERS = Path(__file__).with_name(".venv-peers")


@dataclass(frozen=True)
class Options:
    """What to measure, for how long, and where the results go."""

    only: tuple[str, ...] = ()
    """Rows to measure."""
    rounds: int = 5
    """Rounds; the table has their median and range."""
    seconds: float = 3.0
    """Time of one competitor in one round."""
    out: Path = Path("runs/benchmarks")
    """Folder of table.md, results.json and what the competitors printed."""
    peers: Path = _PEERS
    """Virtual environment of the peers."""
    profile: bool = False
    """Profile this project in the chosen rows (without --only: in all where that tells something), beside nobody."""
    publish: bool = False
    """Measure nothing; put the tables and the profile that are in --out into benchmarks/README.md."""
    orchestration: Path | None = None
    """Measure nothing; say what share of the CPU time of the run whose report is in this folder no job used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (1: a failed profile, 2: bad input, 130: interrupted)."""
    options = tyro.cli(Options, prog="python -m benchmarks", description=_DESCRIPTION, args=arguments)
    try:
        if options.rounds < 1 or options.seconds <= 0:
            raise ValueError("--rounds must be at least 1 and --seconds above 0.")
        if options.publish:
            publish(options.out, Path(__file__).with_name("README.md"))
        elif options.orchestration is not None:
            cpus = len(processors(sys.maxsize))
            found = of_folder(options.orchestration, cpus)
            print(
                f"{found['value']:.1f} % of {found['wall_seconds']:.0f} s x {cpus} CPUs was used by no job "
                f"(jobs: {found['cpu_seconds']:.0f} CPU seconds)."
            )
        elif options.profile:
            _profile(options)
        else:
            _run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Failed as failure:
        print(f"error: what was to be profiled failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; no table was written.", file=sys.stderr)
        return 130
    return 0


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows called `names`, or all that are measured by default; raises ValueError for an unknown name."""
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise ValueError(f"There is no row {', '.join(map(repr, unknown))}; choose from {', '.join(ROWS)}.")
    return [ROWS[name] for name in names] or [row for row in ROWS.values() if row.by_default]


def _profile(options: Options) -> None:
    rows = chosen(options.only) if options.only else [row for row in ROWS.values() if row.profiled]
    if senseless := [row.name for row in rows if not row.profiled]:
        known = ", ".join(row.name for row in ROWS.values() if row.profiled)
        raise ValueError(f"There is nothing to profile in {', '.join(senseless)}; choose from {known}.")
    text = profile(rows, options.seconds, options.out, _log)
    (options.out / "profile.md").write_text(text)
    print(text, end="")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(options: Options) -> None:
    rows = chosen(options.only)
    peers_python = options.peers.absolute() / "bin" / "python"
    out = options.out
    measured = measure(
        rows,
        rounds=options.rounds,
        seconds=options.seconds,
        peers_python=peers_python,
        out=out,
        log=_log,
    )
    machine = describe(peers_python)
    table = markdown(measured, machine, options.rounds, options.seconds)
    (out / "table.md").write_text(table)
    results = {"machine": machine, "rounds": options.rounds, "seconds": options.seconds, "rows": as_json(measured)}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table, end="")


if __name__ == "__main__":
    sys.exit(main())
