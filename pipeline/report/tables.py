"""The numbers of a report as rows: the headline, task by task, and the facts of the run.

Page, terminal and Markdown all print these rows, so they cannot disagree.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.report import statistics
from pipeline.report.summary import (
    SPLITS,
    evaluations,
    labels,
    last_scores,
    mean,
    methods,
    numbers,
    references,
    task_label,
)
from pipeline.report.wording import duration, method_name, reference_name, score


@dataclass(frozen=True)
class Line:
    """One row of the headline. A number that is not known is NaN."""

    name: str
    epoch: str  # "last", "best", or "" for a reference
    step: int | None
    mean: float
    std: float
    iqm: float
    low: float
    high: float

    @property
    def title(self) -> str:
        """Name with epoch, and a star where the epoch was chosen on the tasks it is scored on."""
        star = "*" if self.epoch == "best" else ""
        return f"{self.name}, {self.epoch}{star}" if self.epoch else self.name

    def cells(self, decimals: int) -> list[str]:
        """Step, mean with standard deviation over tasks, interquartile mean with its interval, as text."""
        step = "" if self.step is None else str(self.step)
        centre, middle = score(self.mean, decimals), score(self.iqm, decimals)
        if math.isfinite(self.std):
            centre += f" ± {score(self.std, decimals)}"
        if self.high > self.low:  # not so for one task or equal scores: no interval to speak of
            middle += f" ({score(self.low, decimals)} to {score(self.high, decimals)})"
        return [step, centre, middle]


HEADLINE_COLUMNS = ["policy, epoch", "step", "mean ± std", "IQM (95 % interval)"]


def decimals(summary: dict) -> int:
    """How many decimals make sense for the size of this run's returns."""
    levels = [row.get("mean") for row in summary.get("headline") or []]
    levels += [mean(values) for split in SPLITS for values in references(summary, split).values()]
    sizes = np.abs(numbers(levels))
    return 1 if np.any(sizes[np.isfinite(sizes)] >= 10) else 3


def headline(summary: dict, split: str) -> list[Line]:
    """Rows for a split: each method at its last and best epoch, then the references.

    With several seeds the scores of a task are averaged over the seeds first, so the spread and the interval
    are over tasks in every row.
    """
    found = [row for row in summary.get("headline") or [] if row["split"] == split]
    lines = []
    for method in methods(summary):
        for epoch in ("last", "best"):
            rows = [row for row in found if row["method"] == method and row["epoch"] == epoch]
            if rows:
                lines.append(_single(rows[0]) if len(rows) == 1 else _pooled(summary, rows))
    return lines + [_reference(name, values) for name, values in references(summary, split).items()]


def _single(row: dict) -> Line:
    values = numbers([row.get(name) for name in ("mean", "std_over_tasks", "iqm", "low", "high")])
    return Line(method_name(row["method"]), row["epoch"], row.get("step"), *map(float, values))


def _pooled(summary: dict, rows: list[dict]) -> Line:
    first = rows[0]
    name = f"{method_name(first['method'])} ({len(rows)} seeds)"
    steps = {row.get("step") for row in rows}
    step = steps.pop() if len(steps) == 1 else None
    scores = [values for row in rows if (values := _scores_at(summary, row)) is not None]
    if len(scores) == len(rows):
        return _line(name, first["epoch"], step, np.mean(scores, axis=0))
    unknown = [math.nan] * 4
    return Line(name, first["epoch"], step, mean([row.get("mean") for row in rows]), *unknown)


def _scores_at(summary: dict, row: dict) -> np.ndarray | None:
    """Scores `[tasks]` of the evaluation that a headline row sums up."""
    for run in evaluations(summary, row["method"], row["split"]):
        if run["seed"] == row["seed"] and row.get("step") in run["step"]:
            return numbers(run[row["split"]])[run["step"].index(row["step"])]
    return None


def _line(name: str, epoch: str, step: int | None, scores: np.ndarray) -> Line:
    if not np.isfinite(scores).all():
        return Line(name, epoch, step, mean(scores), *[math.nan] * 4)
    found = statistics.summarise(scores)
    return Line(name, epoch, step, found["mean"], found["std_over_tasks"], found["iqm"], found["low"], found["high"])


def _reference(name: str, values: np.ndarray) -> Line:
    return _line(reference_name(name), "", None, values)


def seeds(summary: dict, split: str) -> list[list[str]]:
    """One row a seed, where a method has several: method, seed, epoch and the headline's numbers."""
    found = [row for row in summary.get("headline") or [] if row["split"] == split]
    runs = {(row["method"], row["seed"]) for row in found}
    several = {method for method, _ in runs if sum(method == other for other, _ in runs) > 1}
    return [
        [
            method_name(row["method"]),
            str(row["seed"]),
            row["epoch"] + ("*" if row["epoch"] == "best" else ""),
            *_single(row).cells(decimals(summary)),
        ]
        for row in found
        if row["method"] in several
    ]


SEED_COLUMNS = ["method", "seed", "epoch", *HEADLINE_COLUMNS[1:]]


def per_task(summary: dict, split: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: task, label, each method's last score (mean over seeds), each reference.

    The last row holds the means over tasks; without any score both lists are empty.
    """
    columns: dict[str, np.ndarray] = {
        method_name(method): last_scores(summary, method, split).mean(axis=0)
        for method in methods(summary)
        if evaluations(summary, method, split)
    }
    columns |= {reference_name(name, short=True): value for name, value in references(summary, split).items()}
    count = max(map(len, columns.values()), default=0)
    if not count:
        return [], []
    places = decimals(summary)
    rows = [
        [str(index), label, *(score(values[index], places) for values in columns.values())]
        for index, label in enumerate(labels(summary, split, count))
    ]
    rows.append(["", "mean", *(score(mean(values), places) for values in columns.values())])
    return ["task", "label", *columns], rows


def facts(summary: dict) -> list[tuple[str, str]]:
    """What was run: sweep, environment, preset, seed, horizon, task counts, wall time; unknown ones are left out."""
    tasks = summary.get("tasks") or {}
    paper_name = summary.get("paper_name")
    wall = summary.get("wall_seconds")
    sweep = summary.get("sweep")
    found = {
        "sweep": f"{sweep['name']} ({sweep['description']})" if sweep else None,
        "environment": summary["environment"] + (f" ({paper_name})" if paper_name else ""),
        "preset": summary.get("preset"),
        "seed": summary.get("seed"),
        "horizon": summary.get("horizon"),
        "training tasks": len(tasks.get("train") or []) or None,
        "unseen tasks": len(tasks.get("test") or []) or None,
        "task parameter": summary.get("parameter"),
        "wall time": None if wall is None else duration(wall),
    }
    return [(name, str(value)) for name, value in found.items() if value is not None]


def verdict(summary: dict) -> str:
    """The result in one sentence: the first method on unseen tasks against each reference's mean."""
    lines = headline(summary, "test")
    policies = [line for line in lines if line.epoch == "last"]
    if not policies:
        return "No score on unseen tasks was recorded."
    first, places = policies[0], decimals(summary)
    others = [line for line in lines if not line.epoch and math.isfinite(line.mean)]
    sentence = f"On unseen tasks, {first.name} reaches a mean return of {score(first.mean, places)}"
    for word, sign in (("above", 1), ("not above", -1)):
        group = [line for line in others if (first.mean > line.mean) == (sign > 0)]
        if group:
            sentence += f"; {word} " + ", ".join(f"{line.name} ({score(line.mean, places)})" for line in group)
    return sentence + "."


def notes(summary: dict) -> list[str]:
    """Sentences without which the headline would mislead."""
    found = [
        "All numbers are undiscounted returns. Mean ± standard deviation over tasks; IQM: mean of the middle "
        "half of the tasks, with a bootstrap interval over tasks."
    ]
    index = (summary.get("references") or {}).get("best_blind_teacher_task")
    if index is not None:
        found.append(f"The best task-blind teacher is that of training task {task_label(summary, index)}.")
    if any(row["epoch"] == "best" for row in summary.get("headline") or []):
        found.append("* The best epoch was chosen on these very tasks, so its score is optimistic.")
    return found


def settings(config: dict, prefix: str = "") -> list[tuple[str, str]]:
    """The nested configuration as (dotted name, value) rows."""
    rows = []
    for name, value in (config or {}).items():
        if isinstance(value, dict) and value:
            rows += settings(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
