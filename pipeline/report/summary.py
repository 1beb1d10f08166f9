"""Reading a run's summary: a plain nested dictionary, the content of summary.json."""

import math
from pathlib import PurePath
from typing import Any

import numpy as np

SPLITS = {"test": "unseen tasks", "train": "training tasks"}


class SummaryError(ValueError):
    """The summary contradicts itself, so a report of it would mislead."""


class MissingData(ValueError):
    """The summary does not hold what a picture or table needs; the message says what, in one sentence."""


def plain(value: Any) -> Any:
    """A copy made of JSON types only: arrays and tuples become lists, NaN and infinities become None.

    Raises SummaryError for a type that JSON has no word for.
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    raise SummaryError(f"a summary holds numbers, text, lists, dictionaries and arrays; got a {type(value).__name__}")


def numbers(values: Any) -> np.ndarray:
    """Nested lists as a float64 array, with None read as NaN; None itself is an empty array.

    Raises SummaryError when the lists do not have equal lengths.
    """
    try:
        return np.array([] if values is None else values, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise SummaryError(
            f"expected numbers in lists of equal length (null where missing); got {values!r:.200}"
        ) from error


def mean(values: Any) -> float:
    """Mean of the finite values; NaN when there are none."""
    array = numbers(values)
    finite = array[np.isfinite(array)]
    return float(finite.mean()) if finite.size else math.nan


def labels(summary: dict, split: str, count: int) -> list[str]:
    """Short names of the `count` tasks of a split; their numbers where the summary does not name them."""
    tasks = (summary.get("tasks") or {}).get(split) or []
    return [str(task["label"]) for task in tasks] or [str(index) for index in range(count)]


def task_label(summary: dict, index: int) -> str:
    """Number and label of a training task; the number alone where the summary does not name it."""
    tasks = (summary.get("tasks") or {}).get("train") or []
    return next((f"{index}: {task['label']}" for task in tasks if task["index"] == index), str(index))


def references(summary: dict, split: str) -> dict[str, np.ndarray]:
    """Per-task returns `[tasks]` of each reference that the summary holds for a split."""
    found = (summary.get("references") or {}).get(split) or {}
    return {name: numbers(values) for name, values in found.items() if values}


def methods(summary: dict) -> list[str]:
    """Names of the methods that left something, in the order of the variants, then of their first mention."""
    sections = ("evaluation", "headline", "distill", "posteriors", "reward_swap", "probes", "relabelling")
    rows = (row for section in sections for row in summary.get(section) or [])
    mentioned = dict.fromkeys(row["method"] for row in rows)
    order = [variant["label"] for variant in summary.get("variants") or [] if variant["label"] in mentioned]
    return list(dict.fromkeys([*order, *mentioned]))


def of_method(summary: dict, section: str, method: str) -> list[dict]:
    """The records of one method in a section, in order: one per seed, or one alone."""
    return [row for row in summary.get(section) or [] if row["method"] == method]


def evaluations(summary: dict, method: str, field: str) -> list[dict]:
    """Evaluation records of one method (one per seed) whose `field` is filled."""
    return [row for row in of_method(summary, "evaluation", method) if row.get(field)]


def aligned(rows: list[dict], field: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[steps]` that all records share, and the values of `field` there, `[records, steps, ...]`."""
    shared = sorted(set.intersection(*(set(row["step"]) for row in rows))) if rows else []
    tables = [numbers(row[field])[[row["step"].index(step) for step in shared]] for row in rows]
    return np.array(shared), np.array(tables)


def curves(summary: dict, method: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[steps]` that all seeds of a method share and the scores there, `[seeds, steps, tasks]`.

    Raises MissingData when the method was not evaluated on the split or its seeds share no step.
    """
    steps, scores = aligned(evaluations(summary, method, split), split)
    if not steps.size:
        raise MissingData(f"No evaluation of {method} on {SPLITS[split]} was recorded.")
    return steps, scores


def last_scores(summary: dict, method: str, split: str) -> np.ndarray:
    """Scores at each seed's last evaluation, `[seeds, tasks]`.

    Raises MissingData when the method was not evaluated on the split.
    """
    rows = evaluations(summary, method, split)
    if not rows:
        raise MissingData(f"No evaluation of {method} on {SPLITS[split]} was recorded.")
    return np.array([numbers(row[split][-1]) for row in rows])


def check(summary: dict) -> None:
    """Raise SummaryError, in one sentence, when counts of tasks, steps and scores do not agree."""
    if not isinstance(summary, dict) or not summary.get("environment"):
        raise SummaryError("a summary is a dictionary with at least the name of its 'environment'")
    for split in SPLITS:
        count = len((summary.get("tasks") or {}).get(split) or [])
        for name, values in references(summary, split).items():
            count = count or len(values)
            _agree(f"reference {name} on {SPLITS[split]}", values.shape, (count,))
        for row in summary.get("evaluation") or []:
            if scores := row.get(split):
                count = count or len(scores[0])
                where = f"evaluation of {row['method']}, seed {row['seed']}, on {SPLITS[split]}"
                _agree(where, numbers(scores).shape, (len(row["step"]), count))


def _agree(where: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        axes = "[steps, tasks]" if len(expected) == 2 else "[tasks]"
        raise SummaryError(f"{where}: scores have shape {shape}, but {axes} should be {expected}")
