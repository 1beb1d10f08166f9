"""Command line: `python -m pipeline run --env umaze_goal`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mbml import envs
from mbml.data import Dataset, validate
from mbml.export import export_parquet
from mbml.transitions import DatasetError
from pipeline.config import PipelineConfig
from pipeline.presets import preset
from pipeline.sweep_config import Sweep, load_sweep, runnable, sweep_defaults
from pipeline.sweep_config import names as sweep_names

_HELP = """usage: python -m pipeline COMMAND [OPTIONS]

Multi-task batch reinforcement learning with metric learning.

commands:
  run       collect, learn, relabel, distil, evaluate and report one environment; continues where it was stopped
  sweep     compare methods or settings with Ray Tune on the same data and teachers; continues where it was stopped
  warmstart SAC on the unseen tasks, from scratch and from the multi-task policy; continues where it was stopped
  figures   draw the paper's figures from the finished sweeps of an environment
  report    write the report of a finished run again
  validate  check a dataset folder: schema, checksums, episodes
  export    write a dataset's batches as Parquet files in the columns that RLlib's offline algorithms read

examples:
  python -m pipeline run --env umaze_goal
  python -m pipeline run --env walker_param --preset paper --store s3://bucket/mbml
  python -m pipeline run --env umaze_goal --distill.margin 4 --distill-seeds 0 1 2
  python -m pipeline run --env umaze_goal --help      every field with its default
  python -m pipeline sweep --sweep triplet_margin --env ant_dir
  python -m pipeline sweep --sweep my_sweep.yaml --env umaze_goal --distill-seeds 0 1 2 3 4
  python -m pipeline warmstart --env umaze_goal --distill-seeds 0 1 2
  python -m pipeline figures --env umaze_goal
  python -m pipeline validate path/to/dataset
  python -m pipeline export path/to/dataset path/to/folder

MBML_TRACEBACK=1 shows where in the code an error comes from.
"""


@dataclass(frozen=True)
class Place:
    """Where a run keeps its things; it does not change what is computed."""

    store: str = "runs/store"
    """Folder or fsspec URL (s3://, gs://, file://) of the artefacts; runs share it and reuse each other's."""
    out: str = ""
    """Folder of the report; by default runs/<env>-<preset>-seed<seed>, for a sweep with its name behind it."""
    num_cpus: int | None = None
    """Processors of the embedded Ray; by default all. A cluster (RAY_ADDRESS) has its own."""
    dashboard: bool = False
    """Also start the Ray dashboard (embedded Ray; needs the packages of ray[default])."""


@dataclass(frozen=True)
class _Everything:
    config: Annotated[PipelineConfig, tyro.conf.arg(name="")]
    place: Annotated[Place, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class _SweepToo(_Everything):
    sweep: str
    """What is compared: a file of tune_configs/ by its name, or a path that ends in .yaml."""


@dataclass(frozen=True)
class _WarmStartToo(_Everything):
    axis: Literal["all_steps", "after_warmup"] = "all_steps"
    """What the pictures count: every environment step, or (as in the paper) only those after the warm-up."""
    comparison: Literal["equal", "paper"] = "equal"
    """Plain SAC in Figures 8 and 12: on the same unseen tasks with the same networks, or (as in the paper) that of
    the data collection, on the training tasks with its own networks."""


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
        if command == "export":
            return _export(rest)
        if command == "sweep":
            return _sweep(rest)
        if command == "warmstart":
            return _warmstart(rest)
        if command in ("run", "report", "figures"):
            return _run(command, rest)
        raise ValueError(
            f"There is no command {command!r}; choose run, sweep, warmstart, figures, report, validate or export."
        )
    except ValueError as error:  # every bad input is one, whichever storey notices it
        if os.environ.get("MBML_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Finished jobs are kept; the same command continues.", file=sys.stderr)
        return 130


def _run(command: str, arguments: list[str]) -> int:
    everything = _parse(command, arguments)
    config, place = everything.config, everything.place
    out = Path(place.out or _folder(config) + ("-figures" if command == "figures" else ""))
    # Ray takes seconds to import, so it waits until the input is known to be good.
    config.check()
    if command == "figures":
        from pipeline.figures import draw

        return draw(config, place.store, out, _log())
    from pipeline import run as runner

    if command == "report":
        return runner.report(config, place.store, out, _log())
    return runner.run(config, place.store, out, _log(), num_cpus=place.num_cpus, dashboard=place.dashboard)


def _sweep(arguments: list[str]) -> int:
    wanted = _known(arguments, "--sweep").sweep
    asks_help = _asks_help(arguments)
    if wanted is None and not asks_help:
        raise ValueError(f"Say which sweep with --sweep: {', '.join(sweep_names())}, or a YAML file.")
    sweep = load_sweep(wanted or "ablations")
    everything = _parse("sweep", arguments, sweep)
    config, place = everything.config, everything.place
    log = _log()
    runnable(sweep, config, lambda line: None)  # Ray takes seconds to import, so bad input is refused before
    from pipeline.sweep import run_sweep

    out = Path(place.out or f"{_folder(config)}-{sweep.name}")
    return run_sweep(sweep, config, place.store, out, log, num_cpus=place.num_cpus, dashboard=place.dashboard)


def _warmstart(arguments: list[str]) -> int:
    everything = _parse("warmstart", arguments)
    assert isinstance(everything, _WarmStartToo)
    config, place = everything.config, everything.place
    config.check()
    from pipeline import warmstart

    warmstart.check(config)
    return warmstart.run(
        config,
        place.store,
        Path(place.out or f"{_folder(config)}-warmstart"),
        _log(),
        num_cpus=place.num_cpus,
        dashboard=place.dashboard,
        axis=everything.axis,
        comparison=everything.comparison,
    )


def _folder(config: PipelineConfig) -> str:
    return f"runs/{config.env}-{config.preset}-seed{config.seed}"


def _parse(command: str, arguments: list[str], sweep: Sweep | None = None) -> _Everything:
    """Two steps: environment, preset and sweep decide the defaults that the other options change."""
    known = _known(arguments, "--env", "--preset")
    if known.env is None and not _asks_help(arguments):
        raise ValueError(f"Say which environment with --env: {', '.join(envs.FAMILIES)}.")
    config = preset(known.env or "umaze_goal", known.preset or "laptop")
    default = _Everything(config, Place())
    if command == "warmstart":
        default = _WarmStartToo(replace(config, methods=("full", "no_ensemble"), distill_cpus=1), Place())
    if sweep is not None:
        default = _SweepToo(sweep_defaults(sweep, config), Place(), sweep.name)
    return tyro.cli(
        type(default),
        prog=f"python -m pipeline {command}",
        description="Defaults are those of the environment and preset named"
        + (", with the sweep's own seeds and settings and one processor a trial." if sweep else "."),
        args=arguments,
        default=default,
    )


def _known(arguments: list[str], *options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in options:
        parser.add_argument(option)
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}.") from None


def _asks_help(arguments: list[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def _validate(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise DatasetError("validate takes one dataset folder.")
    validate(arguments[0])
    print(f"{arguments[0]} is a valid dataset.")
    return 0


def _export(arguments: list[str]) -> int:
    if len(arguments) != 2:
        raise DatasetError("export takes two folders: the dataset, and where the Parquet files go, one per task.")
    dataset = Dataset.open(arguments[0])
    for task in dataset.task_indices:
        export_parquet(dataset.task(task), Path(arguments[1]) / f"task-{task:03d}.parquet", shuffle_seed=task)
    print(f"{len(dataset.task_indices)} Parquet files, rows in random order: {arguments[1]}")
    return 0


def _log() -> Callable[[str], None]:
    started = time.monotonic()

    def log(message: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        print("\n".join(f"[{minutes:3d}:{seconds:02d}] {line}" for line in message.splitlines()), flush=True)

    return log


if __name__ == "__main__":
    sys.exit(main())
