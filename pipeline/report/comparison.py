"""Several methods or several seeds side by side: scores with intervals, diagnostics, and tidy tables for other tools.

Page, terminal and Markdown all print these rows, so they cannot disagree.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report import statistics
from pipeline.report.statistics import Estimate, Spread
from pipeline.report.summary import SPLITS, aligned, evaluations, mean, methods, numbers, of_method
from pipeline.report.tables import decimals
from pipeline.report.wording import ABSENT, method_name, score

_UNKNOWN = Estimate(math.nan, math.nan, math.nan, "")


@dataclass(frozen=True)
class Row:
    """A method at one epoch, over all its seeds and the tasks of a split. A number that is not known is NaN."""

    method: str
    epoch: str  # "last" or "best", of the steps that all its seeds share
    step: int
    seeds: int
    mean: float
    spread: Spread
    iqm: Estimate
    improvement: Estimate | None  # of the first method over this one at the same kind of epoch; None for the first

    def cells(self, places: int) -> list[str]:
        """The row as text, in the order of `columns`."""
        star = "*" if self.epoch == "best" else ""
        return [
            f"{method_name(self.method)}, {self.epoch}{star}",
            str(self.seeds),
            str(self.step),
            *(score(value, places) for value in (self.mean, self.spread.tasks, self.spread.seeds)),
            _with_interval(self.iqm, lambda value: score(value, places)),
            ABSENT if self.improvement is None else _with_interval(self.improvement, lambda value: f"{value:.2f}"),
            self.iqm.over or ABSENT,
        ]


def _with_interval(estimate: Estimate, written: Callable[[float], str]) -> str:
    if not math.isfinite(estimate.value):
        return ABSENT
    return f"{written(estimate.value)} ({written(estimate.low)} to {written(estimate.high)})"


def is_comparison(summary: dict) -> bool:
    """Whether there is more than one method or more than one seed to set side by side."""
    return len(summary.get("evaluation") or []) > 1


def evaluated(summary: dict, field: str) -> list[str]:
    """The methods with an evaluation record whose `field` is filled."""
    return [name for name in methods(summary) if evaluations(summary, name, field)]


def columns(summary: dict, split: str) -> list[str]:
    """Headers of `Row.cells`."""
    first = method_name(next(iter(evaluated(summary, split)), "first"))
    spreads = ["mean", "std tasks", "std seeds"]
    return ["method, epoch", "seeds", "step", *spreads, "IQM (95 %)", f"P({first} better)", "resampled"]


def rows(summary: dict, split: str) -> list[Row]:
    """A row per method and epoch (last, best), methods in order; one whose seeds share no step is left out."""
    tables = {name: aligned(evaluations(summary, name, split), split) for name in evaluated(summary, split)}
    tables = {name: table for name, table in tables.items() if table[0].size}
    found = []
    for method, (steps, scores) in tables.items():
        for epoch in ("last", "best"):
            index = _epoch(scores, epoch)
            first_scores = next(iter(tables.values()))[1]
            first = None if not found or method == found[0].method else first_scores[:, _epoch(first_scores, epoch)]
            found.append(_row(method, epoch, int(steps[index]), scores[:, index], first))
    return found


def _epoch(scores: np.ndarray, epoch: str) -> int:
    return statistics.best_epoch(scores) if epoch == "best" else scores.shape[1] - 1


def _row(method: str, epoch: str, step: int, scores: np.ndarray, first: np.ndarray | None) -> Row:
    """The row of scores `[seeds, tasks]`; `first` are those of the first method."""
    if not np.isfinite(scores).all():
        lost = None if first is None else _UNKNOWN
        return Row(method, epoch, step, len(scores), mean(scores), Spread(math.nan, math.nan), _UNKNOWN, lost)
    better = None
    if first is not None:
        better = statistics.improvement(first, scores) if np.isfinite(first).all() else _UNKNOWN
    pooled, spread = statistics.pooled_iqm(scores), statistics.spread(scores)
    return Row(method, epoch, step, len(scores), float(scores.mean()), spread, pooled, better)


def notes(summary: dict) -> list[str]:
    """Sentences without which the comparison would mislead."""
    first = next(iter(evaluated(summary, "test") or evaluated(summary, "train")), None)
    if first is None or not is_comparison(summary):
        return []
    name = method_name(first)
    found = [
        "Comparison: IQM is the mean of the middle half of all runs (a run: one seed on one task); std tasks is that "
        "of the means over seeds, std seeds that of the means over tasks. All seeds share the data and the teachers, "
        "so no interval covers other data. The last column says what the intervals resample: the seeds within each "
        "task, or the tasks where one of the methods has a single seed.",
        "* The best epoch is the step with the highest mean on these very tasks, so its score is optimistic.",
    ]
    if len(methods(summary)) > 1:
        found.insert(
            1,
            f"P({name} better): probability that a run of {name} scores above a run of the row's method on the same "
            "task, averaged over tasks, ties counting half; 0.5 is no difference.",
        )
    return found


def _percent(value: float, places: int) -> str:
    return f"{value:.0%}"


def _significant(value: float, places: int) -> str:
    return f"{value:.3g}"


def _part(field: str, name: str) -> Callable[[dict], float]:
    return lambda row: mean((row.get(field) or {}).get(name))


def _eligible_error(row: dict) -> float:
    """Root mean square over all eligible labels: pairs count by their share, as all pools are equally large."""
    share, error = numbers(row.get("share")), numbers(row.get("error_eligible"))
    if share.shape != error.shape or not error.size:
        return math.nan
    known = np.isfinite(share) & np.isfinite(error)
    total = share[known].sum()
    return float(np.sqrt((share[known] * error[known] ** 2).sum() / total)) if total else math.nan


# Header: how it is written, the section it stands in, and how a record of that section is read.
_DIAGNOSTICS: dict[str, tuple[Callable[[float, int], str], str, Callable[[dict], float]]] = {
    "swap: rewards' task": (_percent, "reward_swap", lambda row: mean([row.get("follows_reward")])),
    "swap: state-actions' task": (_percent, "reward_swap", lambda row: mean([row.get("follows_state_action")])),
    "own context identified": (_percent, "reward_swap", lambda row: mean([row.get("own_identified")])),
    "own rollouts identified": (_percent, "probes", lambda row: mean((row.get("identification") or [])[-1:])),
    "return, nearest context": (score, "probes", _part("foreign_contexts", "nearest")),
    "return, farthest context": (score, "probes", _part("foreign_contexts", "farthest")),
    "last trajectory": (score, "probes", lambda row: mean(row.get("last_trajectory"))),
    "eligible share": (_percent, "relabelling", lambda row: mean(row.get("share"))),
    "RMSE of eligible labels": (_significant, "relabelling", _eligible_error),
}


def diagnostic_values(summary: dict) -> dict[str, dict[str, np.ndarray]]:
    """Header to method to one value per seed; headers and methods that nothing is known about are left out."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for header, (_, section, read) in _DIAGNOSTICS.items():
        for method in methods(summary):
            values = numbers([read(row) for row in of_method(summary, section, method)])
            if np.isfinite(values).any():
                found.setdefault(header, {})[method] = values[np.isfinite(values)]
    return found


def diagnostics(summary: dict) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a method, and the mean over its seeds (lowest to highest) of every diagnostic."""
    values, places = diagnostic_values(summary), decimals(summary)
    known = [method for method in methods(summary) if any(method in column for column in values.values())]

    def cell(header: str, method: str) -> str:
        write, seeds = _DIAGNOSTICS[header][0], values[header].get(method)
        if seeds is None:
            return ABSENT
        extremes = f" ({write(seeds.min(), places)} to {write(seeds.max(), places)})" if len(seeds) > 1 else ""
        return write(float(seeds.mean()), places) + extremes

    if not known:
        return [], []
    return ["method", *values], [[method_name(m), *(cell(header, m) for header in values)] for m in known]


def titled(summary: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """The tables of the comparison as (title, columns, rows); none for a single method with a single seed."""
    if not is_comparison(summary):
        return []
    places = decimals(summary)
    found = [
        (f"Comparison on {title}", columns(summary, split), [row.cells(places) for row in rows(summary, split)])
        for split, title in SPLITS.items()
    ]
    found.append(("Diagnostics, mean (lowest to highest seed)", *diagnostics(summary)))
    return [(title, *_filled(headers, cells)) for title, headers, cells in found if cells]


def _filled(headers: list[str], cells: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns that say something: one method has no improvement, single seeds have no spread."""
    kept = [index for index in range(len(headers)) if any(row[index] != ABSENT for row in cells)]
    return [headers[index] for index in kept], [[row[index] for index in kept] for row in cells]


def table_rows(summary: dict) -> list[dict[str, Any]]:
    """One flat row per variant, seed and step, with mean and IQM over the tasks of both splits (None if not scored)."""
    found = []
    for row, leading in _runs(summary):
        for index, step in enumerate(row["step"]):
            line = leading | {"step": step}
            for split in SPLITS:
                scores = numbers(row[split][index]) if row.get(split) else numbers(None)
                known = scores.size and np.isfinite(scores).all()
                line[f"{split}_mean"] = float(scores.mean()) if known else None
                line[f"{split}_iqm"] = statistics.iqm(scores) if known else None
            found.append(line)
    return found


def task_rows(summary: dict) -> list[dict[str, Any]]:
    """One flat row per variant, seed, step, split and task (its index in the split), with the score."""
    found = []
    for row, leading in _runs(summary):
        for split in SPLITS:
            tasks = [task["index"] for task in (summary.get("tasks") or {}).get(split) or []]
            for step, scores in zip(row["step"], row.get(split) or [], strict=False):
                for task, value in zip(tasks or range(len(scores)), scores, strict=True):
                    found.append(leading | {"step": step, "split": split, "task": task, "score": value})
    return found


def _runs(summary: dict) -> Iterator[tuple[dict, dict[str, Any]]]:
    """Every evaluation record with the columns that say which run it is."""
    variants = {variant["label"]: variant for variant in summary.get("variants") or []}
    paths = dict.fromkeys(path for variant in variants.values() for path in variant.get("changes") or {})
    for row in summary.get("evaluation") or []:
        label = row["method"]
        variant = variants.get(label) or {"method": label, "changes": {}}
        leading = {
            "environment": summary["environment"],
            "preset": summary.get("preset"),
            "data_seed": summary.get("seed"),
            "variant": label,
            "method": variant["method"],
            **{path: (variant.get("changes") or {}).get(path) for path in paths},
            "seed": row["seed"],
        }
        yield row, leading
