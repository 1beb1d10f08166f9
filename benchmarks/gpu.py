"""What a GPU computes and how fast: every learner's updates there and on the CPU, plain and as captured CUDA graphs.

`python -m benchmarks.gpu --out FOLDER`; `benchmarks/gpu.sh` runs the tests that need a GPU before it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.ours.distillation import random_tables
from benchmarks.ours.draws import CPUDraws
from benchmarks.ours.learners import random_rows, seeded
from benchmarks.table import number
from mbml import envs
from mbml.capture import captured
from mbml.distill import MultiTaskLearner
from mbml.evidence import EvidenceLearner
from mbml.learner import Learner
from mbml.models import Ensemble
from mbml.rows import RowLayout
from mbml.sac import SAC
from mbml.teachers import TEACHERS
from mbml.training import batches
from pipeline.presets import preset

MULTI_TASK = ("full", "evidence")
"""They learn all tasks in one; the others are a stack of tasks."""
LEARNERS = ("sac", *TEACHERS, "reward_ensembles", *MULTI_TASK)
Size = Literal["smoke", "laptop", "paper"]
_FAMILY = "ant_goal"
"""Whose sizes observations and actions have."""
_ALL = 10
"""Its training tasks: those of the multi-task learner, and what a GPU can have side by side."""
_ELIGIBLE = 0.5
"""Share of relabelled transitions that count."""
_BLOCK = 25
"""Updates on a GPU between two looks at the clock, for which the processor waits."""
_WARM_UP = {"cpu": 2, "cuda": 10}
TOLERANCE = {"float64": 1e-8, "float32": 1e-3, "graph": 1e-3}
"""Largest relative difference of a loss over the first updates that is rounding.

Devices add up in different orders. Adam divides a gradient by its own size, so where that is nothing but rounding,
about 1e-8 in single precision, a weight may move by a whole learning rate (up to 1e-3) this way or that: single
precision shows no fault below this size. In double precision such gradients are far below Adam's epsilon of 1e-8 and
move nothing: that comparison tells whether the same is computed, the other whether it is in the precision of training.
"""

Step = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Options:
    """What to measure, for how long, and where the results go."""

    out: Path = Path("runs/gpu")
    """Folder of gpu.md and gpu.json."""
    sizes: tuple[Size, ...] = ("laptop", "paper")
    """Presets whose networks and batches the learners have."""
    learners: tuple[str, ...] = LEARNERS
    """Learners to measure."""
    updates: int = 300
    """Most updates that are timed, per learner and way."""
    seconds: float = 2.5
    """Longest time for them; a slow update is repeated less often, but at least once."""
    compared: int = 5
    """Updates whose losses are compared."""
    rows: int = 20_000
    """Transitions per task."""
    cpu_only: bool = False
    """Leave the GPU alone; also where torch finds none."""


@dataclass(frozen=True)
class Problem:
    """A learner of `tasks` tasks side by side at the sizes of a preset."""

    learner: str
    size: str
    tasks: int

    def build(self, device: str, rows: int, *, graphs: bool = False) -> tuple[Learner, Step]:
        """The learner on `device` with so many random rows per task, and one update of it, drawing included.

        With `graphs`, the update is a captured graph where the learner allows it.
        """
        config, family = preset(_FAMILY, self.size), envs.get(_FAMILY)
        layout, tasks = RowLayout(family.observation_size, family.action_size), self.tasks
        data = random_rows(tasks, rows, layout).to(device)
        generator, contexts = (torch.Generator(device).manual_seed(seed) for seed in (5, 6))
        if self.learner in MULTI_TASK:
            kind = (config.evidence.teacher if self.learner == "evidence" else None) or config.teacher
            teachers = TEACHERS[kind].make(getattr(config, kind), layout, tasks, seeded(4)).teachers().to(device)
            needed: dict[str, Any] = {"teachers": teachers, "tables": random_tables(tasks, rows, _ELIGIBLE).to(device)}
            given = (layout, data, generator, contexts)
            if self.learner == "full":
                learner = MultiTaskLearner(config.distill, *given, **needed)
            else:
                returns = torch.eye(tasks, device=device)
                learner = EvidenceLearner(config.evidence, *given, returns=returns, **needed)
            return learner, learner.update
        if self.learner == "sac":
            learner = SAC(config.collect.sac, layout, tasks, generator)
        elif self.learner == "reward_ensembles":
            learner = Ensemble(config.models.reward, layout, tasks, "reward", generator)
        else:
            learner = TEACHERS[self.learner].make(getattr(config, self.learner), layout, tasks, generator)
        draw = batches(data, learner.config.batch_size, generator)
        update = captured(learner) if graphs else learner.update
        return learner, lambda: update(*draw())


@dataclass
class Times:
    """Milliseconds per update of a problem; None where it was not measured."""

    problem: Problem
    cpu_alone: float | None = None
    """On one thread, which is what an actor gets unless it is told otherwise."""
    cpu: float | None = None
    """On as many threads as torch takes."""
    gpu: float | None = None
    graph: float | None = None

    def ratio(self) -> float | None:
        """The faster way on the CPU over the faster one on the GPU."""
        on_cpu, on_gpu = (
            [t for t in times if t is not None] for times in ((self.cpu_alone, self.cpu), (self.gpu, self.graph))
        )
        return min(on_cpu) / min(on_gpu) if on_cpu and on_gpu else None


@dataclass
class Agreement:
    """Largest relative difference of a loss between two ways of the same updates; None where not compared."""

    problem: Problem
    float64: float | None = None
    float32: float | None = None
    graph: float | None = None


@dataclass
class Results:
    """All that is measured, and what went wrong."""

    machine: dict[str, str]
    options: Options
    times: list[Times] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def timed(problem: Problem, device: str, options: Options, *, graphs: bool = False, threads: int = 0) -> float:
    """Milliseconds per update, the median over single updates on a CPU and over blocks of them on a GPU.

    With `threads`, torch has so many.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        _, step = problem.build(device, options.rows, graphs=graphs)
        return _median(step, device == "cuda", options)
    finally:
        torch.set_num_threads(before)


def _median(step: Step, on_gpu: bool, options: Options) -> float:
    end = time.perf_counter() + options.seconds
    for _ in range(_WARM_UP["cuda" if on_gpu else "cpu"]):
        step()
        if time.perf_counter() > end:
            break
    block, found = _BLOCK if on_gpu else 1, []
    end = time.perf_counter() + options.seconds
    while not found or (len(found) * block < options.updates and time.perf_counter() < end):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(block):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        found.append(1000 * (time.perf_counter() - started) / block)
    return statistics.median(found)


def difference(
    problem: Problem, devices: Sequence[str], updates: int, precision: torch.dtype, *, graphs: bool = False
) -> float:
    """Largest relative difference of a loss over so many updates of the problem on two `devices`.

    Initial weights, rows and draws are the same. With `graphs` the second does captured updates; on one device both
    draw there, otherwise both draw what the first, a CPU, draws. Losses below 0.1 are compared as if they were 0.1.
    """
    first, second = devices
    with _default(precision):
        expected = _losses(problem, first, updates)
        with nullcontext() if first == second else CPUDraws():
            found = _losses(problem, second, updates, graphs=graphs)
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if ours.keys() != theirs.keys():
            raise RuntimeError(f"losses {', '.join(ours)} instead of {', '.join(theirs)}")
        for name, value in theirs.items():
            worst = max(worst, float(((ours[name] - value).abs() / value.abs().clamp_min(0.1)).nan_to_num(1e9).max()))
    return worst


@contextmanager
def _default(precision: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(precision)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _losses(problem: Problem, device: str, updates: int, *, graphs: bool = False) -> list[dict[str, Tensor]]:
    _, step = problem.build(device, rows=500, graphs=graphs)
    return [{name: value.cpu().double() for name, value in step().items()} for _ in range(updates)]


_COMPARISONS = {
    "float64": (("cpu", "cuda"), torch.float64, False),
    "float32": (("cpu", "cuda"), torch.float32, False),
    "graph": (("cuda", "cuda"), torch.float32, True),
}
"""Fields of `Agreement`: devices, precision, and whether the second captures."""
_WAYS = {
    "cpu_alone": ("cpu", False, 1),
    "cpu": ("cpu", False, 0),
    "gpu": ("cuda", False, 0),
    "graph": ("cuda", True, 0),
}
"""Fields of `Times`: device, whether updates are captured, and torch's threads."""


def problems(options: Options) -> list[Problem]:
    """Every learner at every size: tasks side by side as in an actor of the preset and, if that is one, all as well."""
    found = []
    for size in options.sizes:
        alone = preset(_FAMILY, size).collect.tasks_per_actor
        for learner in options.learners:
            everyone = 3 if size == "smoke" else _ALL
            stacks = (everyone,) if learner in MULTI_TASK else (alone,) if alone > 1 else (1, everyone)
            found += [Problem(learner, size, tasks) for tasks in stacks]
    return found


def measure(options: Options, machine: dict[str, str], log: Callable[[str], None]) -> Results:
    """Compare first, then time; results are written after every line, so that an interrupted run leaves some."""
    results, on_gpu = Results(machine, options), "GPU" in machine
    everything = problems(options)

    def attempt(what: str, problem: Problem, function: Callable[[], float]) -> float | None:
        try:
            value = function()
        except Exception as error:  # the other lines are worth having
            traceback.print_exc()
            results.failures.append(f"{problem.size} {problem.learner} x {problem.tasks}, {what}: {error!r:.200}")
            return None
        finally:
            if on_gpu:
                torch.cuda.empty_cache()
        log(f"{problem.size} {problem.learner} x {problem.tasks}, {what}: {value:.3g}")
        return value

    for size, learner in dict.fromkeys((problem.size, problem.learner) for problem in everything) if on_gpu else ():
        problem = Problem(learner, size, 5 if learner in MULTI_TASK else 2)  # enough for every path of the code
        line = Agreement(problem)
        results.agreements.append(line)
        for name, (devices, precision, graphs) in _COMPARISONS.items():
            if graphs and not _captures(problem):
                continue
            given = partial(difference, problem, devices, options.compared, precision, graphs=graphs)
            setattr(line, name, value := attempt(name, problem, given))
            if value is not None and value > TOLERANCE[name]:
                fault = f"losses differ by {value:.1e}, more than {TOLERANCE[name]:.0e}"
                results.failures.append(f"{size} {learner}, {name}: {fault}")
        write(results)
    for problem in everything:
        line = Times(problem)
        results.times.append(line)
        for name, (device, graphs, threads) in _WAYS.items():
            if (device == "cuda" and not on_gpu) or (graphs and not _captures(problem)):
                continue
            given = partial(timed, problem, device, options, graphs=graphs, threads=threads)
            setattr(line, name, attempt(name, problem, given))
        write(results)
    return results


def _captures(problem: Problem) -> bool:
    if problem.learner in TEACHERS:
        made: Any = TEACHERS[problem.learner].make
        return made.constant
    return problem.learner not in MULTI_TASK


def markdown(results: Results) -> str:
    """The tables, what they were measured on, and what failed."""
    cpus = "CPU, 1 thread", f"CPU, {torch.get_num_threads()} threads"
    head = ["size", "learner", "tasks", *cpus, "GPU, plain", "GPU, graph", "CPU / GPU"]
    lines = [_line(head), _line(["---", "---", *["---:"] * 6])]
    for one in results.times:
        cells = [_cell(value) for value in (one.cpu_alone, one.cpu, one.gpu, one.graph, one.ratio())]
        lines.append(_line([one.problem.size, f"`{one.problem.learner}`", str(one.problem.tasks), *cells]))
    about = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    ratio = "CPU / GPU compares the faster of both."
    lines += ["", f"Milliseconds per update, medians, measured on {about}. {ratio}"]
    if results.agreements:
        head = ["size", "learner", "GPU to CPU, float64", "GPU to CPU, float32", "graph to plain, float32"]
        lines += ["", _line(head), _line(["---", "---", "---:", "---:", "---:"])]
        for one in results.agreements:
            values = (one.float64, one.float32, one.graph)
            cells = ["-" if value is None else f"{value:.1e}" for value in values]
            lines.append(_line([one.problem.size, f"`{one.problem.learner}`", *cells]))
        allowed = ", ".join(f"{limit:.0e} ({name})" for name, limit in TOLERANCE.items())
        updates = results.options.compared
        lines += ["", f"Largest relative difference of a loss over {updates} updates; allowed are {allowed}."]
    if results.failures:
        lines += ["", *(f"- failed: {failure}" for failure in results.failures)]
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "-" if value is None else number(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write(results: Results) -> None:
    """Both files of the results, in the folder of the options."""
    out = results.options.out
    (out / "gpu.md").write_text(markdown(results))
    (out / "gpu.json").write_text(json.dumps(asdict(results), indent=1, default=str) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (1: something failed or differs, 2: bad input)."""
    options = tyro.cli(Options, prog="python -m benchmarks.gpu", description=__doc__, args=arguments)
    if unknown := set(options.learners) - set(LEARNERS):
        print(f"error: there is no learner {', '.join(unknown)}; choose from {', '.join(LEARNERS)}.", file=sys.stderr)
        return 2
    machine = describe(Path("no peers"))
    if not options.cpu_only and torch.cuda.is_available():
        machine |= {"GPU": torch.cuda.get_device_name(), "CUDA": str(torch.version.cuda)}
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    results = measure(
        options,
        machine,
        lambda line: print(f"{time.monotonic() - started:6.1f} s  {line}", file=sys.stderr, flush=True),
    )
    print(markdown(results), end="")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
