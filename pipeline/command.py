"""Multi-task batch reinforcement learning with metric learning.

examples:
  python -m pipeline run --env umaze_goal
  python -m pipeline run --env my_package.my_module:my_family --preset smoke
  python -m pipeline run --env umaze_goal --distill.margin 4 --distill-seeds 0 1 2
  python -m pipeline run --env umaze_goal --help      every field with its default
  python -m pipeline sweep --sweep triplet_margin --env ant_dir
  python -m pipeline sweep --sweep my_sweep.yaml --env umaze_goal --distill-seeds 0 1 2 3 4
  python -m pipeline warmstart --env umaze_goal --distill-seeds 0 1 2
  python -m pipeline export-policy --env umaze_goal --out policy
  python -m pipeline play --policy policy --task test/3
  python -m pipeline submit sweep --sweep beta --env ant_dir --store s3://bucket/mbml
  python -m pipeline fit --data logs/ --out fleet --columns columns.yaml
  python -m pipeline import --data logs/ --out dataset --columns columns.yaml
  python -m pipeline validate path/to/dataset

MBML_TRACEBACK=1 shows where in the code an error comes from.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from mbml import envs
from mbml.envs.logged import SCHEME
from mbml.settings import Count, Whole, check_fields
from pipeline.config import Method, Place, RunConfig, check_warmstart, folder_here
from pipeline.datasets import Export, Validate
from pipeline.jobs import JOBS, Submit
from pipeline.presets import preset
from pipeline.sweep_config import load_sweep, runnable, sweep_defaults
from pipeline.sweep_config import names as sweep_names

# Modules that import Ray, which takes seconds, wait until the input is known to be good; readers of logs wait until
# they are asked for.

Log = Callable[[str], None]


@dataclass(frozen=True)
class _Experiment:
    """A command that is about a configuration; its default is that of the environment and preset named."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    place: Annotated[Place, tyro.conf.arg(name="")]
    env: ClassVar[str] = ""
    """Environment of a command that is not told one."""

    @classmethod
    def default(cls, config: RunConfig, sweep: str | None) -> Any:
        """The command as it is without further options."""
        return cls(config, Place())

    def out(self, behind: str = "") -> Path:
        """Folder of the report."""
        config = self.config
        name = f"{config.env.replace(':', '-')}-{config.preset}-seed{config.seed}"
        right = "for a copy in the store add --report-in-store, and for a store elsewhere --store"
        # Jobs of the same source have one working directory on a machine.
        own = f"job-{os.getpid()}/" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else ""
        return folder_here(self.place.out or f"runs/{own}{name}{behind}", right=right)


class Run(_Experiment):
    """Collect, learn, relabel, distil, evaluate and report one environment; continues where it was stopped."""

    def __call__(self, log: Log) -> int:
        self.config.check()
        from pipeline.run import run

        return run(self.config, self.place, self.out(), log)


@dataclass(frozen=True)
class Sweep(_Experiment):
    """Compare methods or settings with Ray Tune on the same data and teachers; continues where it was stopped.

    Defaults are those of the environment and preset, with the sweep's own seeds and settings and one processor a trial.
    """

    sweep: str
    """What is compared: a file of tune_configs/ by its name, or a path that ends in .yaml."""

    @classmethod
    def default(cls, config: RunConfig, sweep: str | None) -> Any:
        if sweep is None:
            raise ValueError(f"Say which sweep with --sweep: {', '.join(sweep_names())}, or a YAML file.")
        return cls(sweep_defaults(load_sweep(sweep), config), Place(), sweep)

    def __call__(self, log: Log) -> int:
        sweep = load_sweep(self.sweep)
        runnable(sweep, self.config, lambda line: None)
        from pipeline.sweep import run_sweep

        return run_sweep(sweep, self.config, self.place, self.out(f"-{sweep.name}"), log)


@dataclass(frozen=True)
class WarmStart(_Experiment):
    """SAC on the unseen tasks, from scratch and from the multi-task policy; continues where it was stopped."""

    axis: Literal["all_steps", "after_warmup"] = "all_steps"
    """What the pictures count: every environment step, or (as in the paper) only those after the warm-up."""
    comparison: Literal["equal", "paper"] = "equal"
    """Plain SAC in Figures 8 and 12: on the same unseen tasks with the same networks, or (as in the paper) that of
    the data collection, on the training tasks with its own networks."""

    @classmethod
    def default(cls, config: RunConfig, sweep: str | None) -> Any:
        return cls(replace(config, methods=("full", "no_ensemble"), distill_cpus=1), Place())

    def __call__(self, log: Log) -> int:
        check_warmstart(self.config)
        from pipeline.run import warmstart

        out = self.out("-warmstart")
        return warmstart(self.config, self.place, out, log, axis=self.axis, comparison=self.comparison)


class Figures(_Experiment):
    """Draw the paper's figures from the finished sweeps of an environment."""

    def __call__(self, log: Log) -> int:
        self.config.check()
        from pipeline.sweep import draw_figures

        return draw_figures(self.config, self.place, self.out("-figures"), log)


class Report(_Experiment):
    """Write the report of a finished run again."""

    def __call__(self, log: Log) -> int:
        self.config.check()
        from pipeline.run import report

        return report(self.config, self.place, self.out(), log)


@dataclass(frozen=True)
class ExportPolicy(_Experiment):
    """Write a finished run's policy as a folder that acts without this project's data, store or simulators.

    --out is that folder, by default runs/<env>-<preset>-seed<seed>/policy.
    """

    method: Method | None = None
    """Whose policy; by default that of the run's methods that does best on the training tasks."""
    onnx: bool = True
    """Also write ONNX graphs."""

    def __call__(self, log: Log) -> int:
        config = self.config if self.method is None else replace(self.config, methods=(self.method,))
        config.check()
        from pipeline.run import export_policy

        return export_policy(config, self.place, self.out("/policy"), log, graphs=self.onnx)


@dataclass(frozen=True)
class _Logs:
    """What is read, and how."""

    data: tuple[str, ...]
    """Files, folders, or ids of Minari datasets."""
    format: str | None = None
    """One of dataset, lerobot, minari, table, hdf5, npz; found out without it."""
    columns: str | None = None
    """A YAML file that says which column is what."""
    drop_bad_rows: bool = False
    """Leave out rows with numbers that are not finite, and cut their episodes there."""

    def write(self, out: str | Path, log: Log, **more: Any) -> Path:
        """Write them as a dataset; returns its folder. `more` is for `import_logs`."""
        from mbml.logs import ColumnMap
        from mbml.logs.importing import import_logs

        columns = ColumnMap.load(self.columns) if self.columns else None
        return import_logs(self.data, out, columns, kind=self.format, drop_bad_rows=self.drop_bad_rows, log=log, **more)


@dataclass(frozen=True)
class Import:
    """Write logs of your own as a dataset, in the scale that learners take (docs/own-data.md)."""

    logs: Annotated[_Logs, tyro.conf.arg(name="")]
    out: str
    """The dataset's folder, which must not be there, or be this very dataset."""

    def __call__(self, log: Log) -> int:
        self.logs.write(folder_here(self.out), log)
        return 0


@dataclass(frozen=True)
class Fit(_Experiment):
    """Learn one policy from logs of your own, without a simulator (docs/fit.md); continues where it was stopped.

    --out is the folder of dataset, report and policy.
    """

    logs: Annotated[_Logs, tyro.conf.arg(name="")]
    held_out: tuple[str, ...] = ("0.2",)
    """Tasks that nothing learns from, to judge by: their names, or a share of all between 0 and 1."""
    env: ClassVar[str] = SCHEME

    @classmethod
    def default(cls, config: RunConfig, sweep: str | None) -> Any:
        return cls(config, Place(), _Logs(tyro.MISSING))

    def __call__(self, log: Log) -> int:
        if self.config.env != SCHEME:
            raise ValueError(f"fit learns from logs alone; leave out --env {self.config.env}.")
        check_fields(self.config)
        if not self.place.out:
            raise ValueError("Say with --out in which folder dataset, report and policy go.")
        if not self.held_out:
            raise ValueError("Say with --held-out which tasks to judge by: names, or a share between 0 and 1.")
        from pipeline.fit import check_fit, fit

        out = self.out()
        check_fit(self.config, self.place, out)
        rules: dict[str, Any] = {"held_out": self.held_out, "seed": self.config.seed}
        dataset = self.logs.write(out / "dataset", log, beside=True, **rules)
        config = replace(self.config, env=f"{SCHEME}{dataset.absolute()}")
        config.check()
        return fit(config, self.place, out, log)


@dataclass(frozen=True)
class Play:
    """Watch a policy's folder act: returns, a picture and, where this machine can draw, films.

    The policy knows nothing of the task at first and adapts from episode to episode, each as long as in its training.
    The picture shows every episode in the terms of the family (paths and goals, velocity and target, ...), the films
    the first and the last; they are GIFs, or MP4s where imageio-ffmpeg is installed.
    """

    policy: str
    """The folder: runs/<env>-<preset>-seed<seed>/policy, or what export-policy or fit wrote."""
    env: str = ""
    """Environment by name, or module:family of your own; by default the one that the policy learned in."""
    task: str = "test/0"
    """Split (train, test or ood) and number from 0."""
    episodes: Count = 5
    """Episodes of the adaptation."""
    out: str = ""
    """Folder of picture and films; by default runs/play-<env>-<split>-<number>."""
    seed: Whole = 0
    """Of the environment and of what the policy draws: the same seed gives the same episodes."""
    given: str = ""
    """A dataset's folder, as a run's collection or import leave it: the policy sees transitions of it first."""
    given_task: Whole = 0
    """Which task's, by its index there."""
    given_transitions: Count = 200
    """How many at most, from the task's first one on."""

    def __call__(self, log: Log) -> int:
        check_fields(self)
        from pipeline.play import Given, play

        given = Given(self.given, self.given_task, self.given_transitions) if self.given else None
        return play(self.policy, self.env, self.task, self.episodes, self.out, self.seed, log, given)


COMMANDS: dict[str, type] = {
    "run": Run,
    "sweep": Sweep,
    "warmstart": WarmStart,
    "figures": Figures,
    "report": Report,
    "export-policy": ExportPolicy,
    "fit": Fit,
    "import": Import,
    "validate": Validate,
    "export": Export,
    "play": Play,
    **JOBS,
}


@dataclass(frozen=True)
class _First:
    """The options that decide the defaults of all others."""

    env: str = ""
    preset: str = "laptop"
    sweep: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2: bad input, 1: a job failed)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _parse(arguments)(_log())
    except BrokenPipeError:  # whoever read the output has gone, as head does; Python's last flush must not fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ValueError as error:  # every bad input is one, whichever storey notices it
        if os.environ.get("MBML_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk that is full, a folder that is not ours
        if os.environ.get("MBML_TRACEBACK") or not error.strerror:
            raise
        print(f"error: {error.strerror}: {error.filename or 'a file of this run'}", file=sys.stderr)
        return 1


def _parse(arguments: list[str]) -> Callable[[Log], int]:
    """The command that is asked for; help and what cannot be parsed end the program here."""
    chosen, rest = COMMANDS.get(arguments[0] if arguments else ""), arguments[1:]
    program = "mbml" if Path(sys.argv[0]).stem == "mbml" else "python -m pipeline"
    if chosen is None:
        if arguments and arguments[0] not in ("-h", "--help"):
            raise ValueError(f"There is no command {arguments[0]!r}; choose one of {', '.join(COMMANDS)}.")
        about = [f"  {name:<15}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
        print(f"usage: {program} COMMAND [OPTIONS]\n\n{__doc__}\ncommands:", *about, sep="\n")
        sys.exit(0)
    options: dict[str, Any] = {"prog": f"{program} {arguments[0]}", "description": chosen.__doc__}
    if issubclass(chosen, _Experiment):
        options["default"] = chosen.default(*_first(rest, chosen.env))
    if chosen is Submit:
        rest, options["default"] = Submit.split(rest, _parse)
    return tyro.cli(chosen, args=rest, **options)


def _first(arguments: list[str], env: str) -> tuple[RunConfig, str | None]:
    """The configuration that the options change, of `env` where they name none, and the sweep named: the first of two
    steps."""
    given = [argument for argument in arguments if argument not in ("-h", "--help")]
    known, _ = tyro.cli(_First, args=given, return_unknown_args=True, add_help=False)
    asks_help = len(given) < len(arguments)
    env = known.env or env
    if not env and not asks_help:
        raise ValueError(f"Say which environment with --env: {', '.join(envs.FAMILIES)}, or module:family of your own.")
    sweep = known.sweep or (sweep_names()[0] if asks_help else None)
    config = preset(env or next(iter(envs.FAMILIES)), known.preset)
    return config if env else replace(config, env=tyro.MISSING), sweep


def _log() -> Log:
    started = time.monotonic()

    def log(message: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        print("\n".join(f"[{minutes:3d}:{seconds:02d}] {line}" for line in message.splitlines()), flush=True)

    return log
