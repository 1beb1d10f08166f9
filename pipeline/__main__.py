"""Command line: `python -m pipeline run --env umaze_goal`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mbml import envs
from mbml.data import validate
from mbml.transitions import DatasetError
from pipeline.config import PipelineConfig
from pipeline.presets import preset

_HELP = """usage: python -m pipeline COMMAND [OPTIONS]

Multi-task batch reinforcement learning with metric learning.

commands:
  run       collect, learn, relabel, distil, evaluate and report one environment; continues where it was stopped
  report    write the report of a finished run again
  validate  check a dataset folder: schema, checksums, episodes

examples:
  python -m pipeline run --env umaze_goal
  python -m pipeline run --env walker_param --preset paper --store s3://bucket/mbml
  python -m pipeline run --env umaze_goal --distill.margin 4 --distill-seeds 0 1 2
  python -m pipeline run --env umaze_goal --help      every field with its default
  python -m pipeline validate path/to/dataset

MBML_TRACEBACK=1 shows where in the code an error comes from.
"""


@dataclass(frozen=True)
class Place:
    """Where a run keeps its things; it does not change what is computed."""

    store: str = "runs/store"
    """Folder or fsspec URL (s3://, gs://, file://) of the artefacts; runs share it and reuse each other's."""
    out: str = ""
    """Folder of the report; by default runs/<env>-<preset>-seed<seed>."""
    num_cpus: int | None = None
    """Processors of the embedded Ray; by default all. A cluster (RAY_ADDRESS) has its own."""
    dashboard: bool = False
    """Also start the Ray dashboard (embedded Ray; needs the packages of ray[default])."""


@dataclass(frozen=True)
class _Everything:
    config: Annotated[PipelineConfig, tyro.conf.arg(name="")]
    place: Annotated[Place, tyro.conf.arg(name="")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2: bad input, 1: a job failed, 130: interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0
    command, rest = arguments[0], arguments[1:]
    try:
        if command == "validate":
            return _validate(rest)
        if command in ("run", "report"):
            return _run(command, rest)
        raise ValueError(f"There is no command {command!r}; choose run, report or validate.")
    except ValueError as error:  # every bad input is one, whichever storey notices it
        if os.environ.get("MBML_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Finished jobs are kept; the same command continues.", file=sys.stderr)
        return 130


def _run(command: str, arguments: list[str]) -> int:
    config, place = _parse(command, arguments)
    out = Path(place.out or f"runs/{config.env}-{config.preset}-seed{config.seed}")
    # Ray takes seconds to import, so it waits until the input is known to be good.
    config.check()
    from pipeline import run as runner

    if command == "report":
        return runner.report(config, place.store, out, _log())
    return runner.run(config, place.store, out, _log(), num_cpus=place.num_cpus, dashboard=place.dashboard)


def _parse(command: str, arguments: list[str]) -> tuple[PipelineConfig, Place]:
    """Two steps: environment and preset decide the defaults that the other options change."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--env")
    first.add_argument("--preset", default="laptop")
    try:
        known, _ = first.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}.") from None
    asks_help = "--help" in arguments or "-h" in arguments
    if known.env is None and not asks_help:
        raise ValueError(f"Say which environment with --env: {', '.join(envs.NAMES)}.")
    default = preset(known.env or "umaze_goal", known.preset)

    everything = tyro.cli(
        _Everything,
        prog=f"python -m pipeline {command}",
        description="Defaults are those of the environment and preset named.",
        args=arguments,
        default=_Everything(default, Place()),
    )
    return everything.config, everything.place


def _validate(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise DatasetError("validate takes one dataset folder.")
    validate(arguments[0])
    print(f"{arguments[0]} is a valid dataset.")
    return 0


def _log() -> Callable[[str], None]:
    started = time.monotonic()

    def log(message: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        print("\n".join(f"[{minutes:3d}:{seconds:02d}] {line}" for line in message.splitlines()), flush=True)

    return log


if __name__ == "__main__":
    sys.exit(main())
