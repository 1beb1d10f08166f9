"""How time and memory grow with the number of tasks: `python -m benchmarks.grow --help`.

    python -m benchmarks.grow --parts distill stacks relabel fit   # all of it, half an hour
    python -m benchmarks.grow --parts distill stacks               # minutes
    python -m benchmarks.grow --parts relabel --tasks 100 1000     # models and tables of 10,000 rows a task
    python -m benchmarks.grow --parts fit --tasks 10 100 1000      # from logs to the policy's folder, 2,000 rows a task

Leaves `grow.json`, `grow.md` and `grow.png` in the folder `--out`; what an earlier call measured there stays.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import Field

from benchmarks.machine import describe
from benchmarks.ours.learners import random_rows, seeded, stacked
from benchmarks.peers.protocol import milliseconds
from benchmarks.profiled import by_kind
from mbml.distill import DistillConfig, MultiTaskLearner
from mbml.evidence import EvidenceConfig, EvidenceLearner
from mbml.learner import Learner
from mbml.models import Ensemble, EnsembleConfig
from mbml.relabel import RelabelConfig, RelabelTables, pools_of, ring_of, shapes_of
from mbml.rows import RowLayout, lengths_of
from mbml.settings import Count, Positive, Whole, changed, check_fields
from mbml.students import StudentConfig
from mbml.teachers import TEACHERS

LAYOUT = RowLayout(8, 3)
_ROWS, _LAPTOP = 1_000, {"context_size": 32, "partners": 3, "batch_size": 64}
_STUDENT = StudentConfig(**dict.fromkeys(("value_hidden", "decoder_hidden", "perturbation_hidden"), (256,) * 3))
_STACKS = (1, 2, 5, 10, 20, 50, 100)
Several = Annotated[int, Field(ge=2), tyro.conf.arg(metavar="INT >= 2")]
Part = Literal["distill", "stacks", "relabel", "fit"]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    parts: tuple[Part, ...] = ("distill", "stacks")
    """Steps of the multi-task learners; stacks of teachers and ensembles; models and relabelling; a whole fit."""
    tasks: tuple[Several, ...] = (10, 16, 100, 1_000)
    """Numbers of tasks, of which a step needs 2, and relabelling and a fit, which hold one out, 3."""
    rows: Whole = 0
    """Rows of a task in `relabel` and `fit`; by default 10,000 and 2,000."""
    rounds: Count = 7
    """Rounds in which all numbers of tasks take turns, of `distill` and `stacks`."""
    seconds: Positive = 1.0
    """Of a round."""
    threads: Count = 1
    """Of torch, in `distill` and `stacks`."""
    more: str = ""
    """Options of `pipeline fit` besides, in one word: --more='--evidence.steps 100 --fqe.steps 100'."""
    out: Path = Path("runs/grow")
    """Folder of the results, and of the logs."""


Found = dict[str, dict[str, Any]]
"""By a part's line and the number of tasks (or of a stack)."""


def tables(tasks: int) -> RelabelTables:
    """Random labels, of which half count."""
    generator, lengths = seeded(3), lengths_of(torch.empty(tasks, _ROWS, 0))
    index, ring = pools_of(lengths, 0, generator), ring_of(tasks, RelabelConfig(), 0)
    shape, _ = shapes_of(lengths, LAYOUT, ["reward"], ring)["reward"]
    labels, eligible = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) < 0.5
    return RelabelTables.of(index, labels, eligible, None, None if ring is None else ring.order)


def learners(tasks: int) -> dict[str, Learner]:
    """Both multi-task learners at laptop size with small teachers."""
    entry = TEACHERS["iql"]
    assert entry.config is not None
    rows = random_rows(tasks, _ROWS, LAYOUT)
    teachers = entry.make(changed(entry.config(), {"hidden": (64, 64)}), LAYOUT, tasks, seeded(4)).teachers()
    needed: Any = {"teachers": teachers, "tables": tables(tasks)}
    full = DistillConfig(student=_STUDENT, **_LAPTOP)  # pyright: ignore[reportArgumentType]
    evidence = replace(EvidenceConfig(), batch_size=_LAPTOP["batch_size"])
    evidence = replace(evidence, student=replace(_STUDENT, encoder=evidence.student.encoder, standardised=True))
    return {
        "evidence": EvidenceLearner(
            evidence,
            LAYOUT,
            rows,
            seeded(5),
            seeded(6),
            returns=torch.zeros(tasks, tasks).fill_diagonal_(1.0),
            **needed,
        ),
        "full": MultiTaskLearner(full, LAYOUT, rows, seeded(5), seeded(6), **needed),
    }


def in_turn(steps: dict[str, Callable[[], Any]], options: Options, profiled: bool = False) -> Found:
    """Milliseconds of every step, the median over rounds in which all take turns: of all of it, or under a profiler by
    kind of work."""
    measures = {name: milliseconds(step) for name, step in steps.items()}
    found: Found = {}
    for _ in range(options.rounds):
        for name, measure in measures.items():
            times = by_kind(measure, options.seconds) if profiled else {"": measure(options.seconds)["value"]}
            for kind, value in times.items():
                found.setdefault(kind, {}).setdefault(name, []).append(value)
    return {kind: {name: statistics.median(times) for name, times in line.items()} for kind, line in found.items()}


def distill(options: Options) -> Found:
    """Milliseconds of a step by the number of tasks, and under a profiler by kind of work."""
    made = {tasks: learners(tasks) for tasks in options.tasks}
    found: Found = {}
    for name in ("evidence", "full"):
        steps = {str(tasks): made[tasks][name].update for tasks in made}
        found[f"step of {name}, ms"] = in_turn(steps, options)[""]
        for kind, line in in_turn(steps, options, profiled=True).items():
            if any(line.values()):
                found[f"... of {name}: {kind}"] = line
    return found


def stacks(options: Options) -> Found:
    """Milliseconds of an update per task, by how many are side by side."""
    entry, config = TEACHERS["iql"], EnsembleConfig(members=5, hidden=(64, 64))
    assert entry.config is not None
    found: Found = {}
    for width in (64, 128):
        small = changed(entry.config(), {"hidden": (width, width), "batch_size": 128})
        steps = {}
        for number in _STACKS:
            learner = entry.make(small, LAYOUT, number, seeded())
            steps[str(number)] = stacked(learner.update, random_rows(number, _ROWS, LAYOUT), 128)
        found[f"IQL {width}x2, ms a task"] = {n: t / int(n) for n, t in in_turn(steps, options)[""].items()}
        steps = {}
        for number in _STACKS:
            ensemble = Ensemble(replace(config, hidden=(width, width)), LAYOUT, number, "reward", seeded())
            steps[str(number)] = stacked(ensemble.update, random_rows(number, _ROWS, LAYOUT), 128)
        found[f"ensembles 5 of {width}x2, ms a task"] = {n: t / int(n) for n, t in in_turn(steps, options)[""].items()}
    return found


def logs_of(tasks: int, rows: int, out: Path) -> Path:
    """Logs of the point mass, written once."""
    from examples.point_mass import Options as Logs
    from examples.point_mass import write_logs

    file = out / f"points-{tasks}-{rows}" / "points.parquet"
    if not file.exists():
        write_logs(Logs(file, tasks=tasks, rows=rows))
    return file


SIZES = {
    **{"teach.iterations": "1500", "iql.hidden": "64 64", "iql.batch-size": "64", "iql.learning-rate": "0.003"},
    **{"models.reward.hidden": "64 64", "models.reward.members": "3", "models.reward.steps": "1000"},
    **{"models.reward.batch-size": "64", "evidence.steps": "4000", "evidence.snapshot-every": "4000"},
    **{"fqe.steps": "2000", "teach.tasks-per-actor": "0", "models.tasks-per-actor": "0"},
}
"""What this needs, as options of `pipeline fit`."""
RELABEL: dict[str, Any] = {
    **{"models.reward.hidden": (64, 64), "models.reward.members": 3, "models.reward.steps": 1_000},
    **{"models.reward.batch_size": 64, "models.tasks_per_actor": 0},
}


def command(file: Path, folder: Path, options: Options) -> list[str]:
    """A fit of logs into `folder`."""
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", *value.split())]
    places = ["--out", str(folder / "out"), "--store", str(folder / "store")]
    source = ["--data", str(file), "--columns", str(file.with_name("columns.yaml")), "--held-out", "0.05"]
    return [sys.executable, "-m", "pipeline", "fit", *source, *places, *sizes, *shlex.split(options.more)]


def _own_memory(pid: int) -> float:
    """MiB that a process has for itself: not pages of files, which the system may forget."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1024


def _family(root: int) -> list[int]:
    """A process and all that come from it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


class Peak:
    """The most memory that a process and all its children had together while inside."""

    def __init__(self, root: int) -> None:
        self.root, self.mib, self._ended = root, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ended.wait(0.5):
            self._look()

    def _look(self) -> None:
        self.mib = max(self.mib, sum(map(_own_memory, _family(self.root))))

    def __enter__(self) -> Peak:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()


def fit(options: Options) -> Found:
    """Seconds and memory of a whole fit, stage by stage."""
    found: Found = {"fit, seconds": {}, "fit, MiB of all processes": {}}
    for tasks in options.tasks:
        file = logs_of(tasks, options.rows or 2_000, options.out)
        with tempfile.TemporaryDirectory(dir=options.out) as scratch:
            folder, started = Path(scratch), time.perf_counter()
            process = subprocess.Popen(command(file, folder, options), stdout=sys.stderr)
            with Peak(process.pid) as peak:
                code = process.wait()
            if code:
                raise RuntimeError(f"The fit of {tasks} tasks ended with {code}.")
            found["fit, seconds"][str(tasks)] = time.perf_counter() - started
            found["fit, MiB of all processes"][str(tasks)] = peak.mib
            about = json.loads((folder / "out" / "run.json").read_text())
            for stage in about["cost"]:
                found.setdefault(f"fit, work of {stage['stage']}, seconds", {})[str(tasks)] = stage["work_seconds"]
            size = (folder / "out" / "report.html").stat().st_size
            found.setdefault("report, MB", {})[str(tasks)] = size / 1e6
    return found


def relabel(options: Options) -> Found:
    """Seconds of models and relabelling on all processors, and the private memory of the process that relabels."""
    found: Found = {}
    for tasks in options.tasks:
        file = logs_of(tasks, options.rows or 10_000, options.out)
        with tempfile.TemporaryDirectory(dir=options.out) as scratch:
            context = multiprocessing.get_context("spawn")
            answer = context.Queue()
            process = context.Process(target=_relabel, args=(file, Path(scratch), answer))
            process.start()
            measured = answer.get()
            process.join()
            if "failed" in measured:
                raise RuntimeError(f"Relabelling {tasks} tasks failed: {measured['failed']}")
            for name, value in measured.items():
                found.setdefault(name, {})[str(tasks)] = value
    return found


def _relabel(file: Path, folder: Path, answer: Any) -> None:
    """In a process of its own: import, then the jobs up to the tables, of which the last is made here."""
    from actors.host import Host
    from actors.store import Store
    from mbml.logs import ColumnMap
    from mbml.logs.importing import import_logs
    from pipeline.cluster import connect
    from pipeline.fit import plan_fit
    from pipeline.presets import preset
    from pipeline.scheduler import execute

    try:
        columns = ColumnMap.load(file.with_name("columns.yaml"))
        import_logs([str(file)], folder / "dataset", columns, held_out=["0.05"], log=print)
        config = preset(f"data:{folder / 'dataset'}", "laptop")
        plan = plan_fit(changed(config, RELABEL | {"relabel.pool": 0}))
        (run,) = plan.runs
        assert run.relabel is not None
        store = Store(folder / "store")
        before = [job for job in plan.needed([run.relabel]) if job.ref != run.relabel]
        started = time.perf_counter()
        with connect(num_cpus=len(os.sched_getaffinity(0))):
            outcome = execute(before, store.url, log=lambda line: print(line, file=sys.stderr))
        if not outcome.complete:
            raise RuntimeError(str(outcome.failed))
        models = {stage.stage: stage for stage in outcome.cost}["models"]
        torch.set_num_threads(1)
        bare, again = _own_memory(os.getpid()), time.perf_counter()
        with Peak(os.getpid()) as peak:
            Host(store.url).run(plan.jobs[run.relabel])
        answer.put(
            {
                "models, wall seconds": models.wall_seconds,
                "relabel, seconds": time.perf_counter() - again,
                "models and relabel, seconds": time.perf_counter() - started,
                "relabel, MiB of its own": peak.mib - bare,
                "tables, MB": (store.fetch(*run.relabel) / "tables.safetensors").stat().st_size / 1e6,
            }
        )
    except BaseException as error:
        answer.put({"failed": f"{type(error).__name__}: {error}"})


PARTS: dict[str, Callable[[Options], Found]] = {"distill": distill, "stacks": stacks, "relabel": relabel, "fit": fit}


def written(found: Found, machine: dict[str, str], out: Path) -> str:
    """Write all three files; returns the table."""
    numbers = sorted({int(n) for line in found.values() for n in line})
    head = ["what", *(f"{n:,}" for n in numbers)]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(numbers)]
    for name, line in found.items():
        cells = [line.get(str(n)) for n in numbers]
        words = ["-" if c is None else f"{c:,.3g}" if isinstance(c, float) else str(c) for c in cells]
        lines.append("| " + " | ".join([name, *words]) + " |")
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    text = "\n".join([*lines, "", f"By the number of tasks, or of those side by side. Measured on {about}.", ""])
    (out / "grow.md").write_text(text)
    (out / "grow.json").write_text(json.dumps({"machine": machine, "found": found}, indent=1) + "\n")
    draw(found, out / "grow.png")
    return text


def draw(found: Found, file: Path) -> None:
    """Growth curves, both axes logarithmic, with a line that grows as the tasks do."""
    panels = {
        "a step of the multi-task learner, ms": r"step of (\w+), ms",
        "seconds": r"(models and relabel|fit), seconds|fit, work of (teach|models|fqe|distill), seconds",
        "MB": r"(fit, MiB of all processes|tables|report)(?:, MB)?",
    }
    made = Figure(figsize=(12, 4.5), layout="constrained")
    for axes, (title, pattern) in zip(made.subplots(1, 3), panels.items(), strict=True):
        shown = {name: match for name in found if (match := re.fullmatch(pattern, name))}
        axes.set_visible(bool(shown))
        for number, (name, match) in enumerate(shown.items()):
            points = sorted((int(n), value) for n, value in found[name].items())
            label = next(group for group in match.groups() if group)
            axes.plot(*zip(*points, strict=True), "os^Dvp"[number] + "-", color=f"C{number}", label=label, markersize=4)
        ends = np.array([10, 1_000])
        level = np.median([value for name in shown for value in found[name].values()] or [1.0])
        axes.plot(ends, level * ends / 100, ":", color="#888888", label="as the tasks")
        axes.set(xscale="log", yscale="log", xlabel="tasks", title=title)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
        axes.grid(alpha=0.3)
    FigureCanvasAgg(made).print_png(str(file))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    options = tyro.cli(Options, prog="python -m benchmarks.grow", description=__doc__, args=arguments)
    try:
        check_fields(options)
        options.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(options.threads)
        before = options.out / "grow.json"
        found: Found = json.loads(before.read_text())["found"] if before.exists() else {}
        for part in options.parts:
            for name, line in PARTS[part](options).items():
                found[name] = found.get(name, {}) | line
            text = written(found, describe(Path("no peers")), options.out)
    except (RuntimeError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
