"""From rounds to the table: median, range, and how this project compares."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Measured, Result
from benchmarks.registry import Row

PUBLISHED = ("table", "profile", "gpu")
"""Files NAME.md of a measurement, and their places in the README: `<!-- NAME -->` to `<!-- /NAME -->`."""
_HEAD = ("what", "who", "median", "min to max", "compared")


class TableError(ValueError):
    """No table to publish, or no place for it."""


class Summary(NamedTuple):
    """Median, smallest and largest of a competitor's rounds."""

    median: float
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    """Of at least one value."""
    return Summary(statistics.median(values), min(values), max(values))


def advantage(row: Row, first: float, other: float) -> float:
    """How many times as fast (or small) as `other` the row's first competitor is; below 1 it is slower."""
    return first / other if row.higher_is_better else other / first


def markdown(measured: Sequence[Measured], machine: Mapping[str, Any], rounds: int, seconds: float) -> str:
    """The table, what it was measured on, and a note for every row."""
    lines = [_line(_HEAD), _line(["---", "---", "---:", "---:", "---"])]
    for one in measured:
        lines += _rows(one)
    about = ", ".join(f"{name} {value}" for name, value in machine.items())
    notes = [f"- **{one.row.title}**: {one.row.note}" for one in measured]
    asked = f"{rounds} rounds of {seconds:g} s each (where rows do not say otherwise), competitors taking turns."
    return "\n".join([*lines, "", f"Measured on {about}; {asked}", "", *notes]) + "\n"


def _rows(measured: Measured) -> list[str]:
    row = measured.row
    cores = f"{measured.cores} core" + ("s" if measured.cores > 1 else "")
    short = f" instead of {row.cores}" if measured.cores < row.cores else ""
    lines = [_line([f"**{row.title}**, {row.unit}, {cores}{short}", "", "", "", ""])]
    found = {id(r): summarise([x["value"] for x in r.rounds]) for r in measured.results if r.rounds}
    first = found.get(id(measured.results[0]))
    for result in measured.results:
        summary = found.get(id(result))
        label = result.competitor.label
        if summary is None or result.failure:
            lines.append(_line(["", label, "-", "-", result.failure.replace("|", "/")]))
            continue
        compared = "" if first is None or result is measured.results[0] else _compared(row, first, summary, result)
        compared = "; ".join(filter(None, [compared, _extra(result)]))
        lines.append(_line(["", label, number(summary.median), _range(summary), compared]))
    return lines


def _compared(row: Row, first: Summary, other: Summary, result: Result) -> str:
    if not row.compared:
        return ""
    times = advantage(row, first.median, other.median)
    if result.competitor.kind == "limit":
        return f"the first reaches {100 * times:.0f} % of it"
    return f"{times:.2f} x"


def _extra(result: Result) -> str:
    """What else a competitor told, in words, as the median over its rounds."""
    words = {"physics_share": "{:.0%} of it physics", "jobs": "{:.0f} jobs", "rows_alone": "rows alone {:.0f} MiB"}
    parts = []
    for name, form in words.items():
        if name in result.rounds[0]:
            parts.append(form.format(statistics.median(x[name] for x in result.rounds)))
    return ", ".join(parts)


def number(value: float) -> str:
    """Three significant digits, thousands separated, no exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - _exponent(value))
    return f"{round(value, 2 - _exponent(value)):,.{digits}f}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


def _range(summary: Summary) -> str:
    return f"{number(summary.low)} to {number(summary.high)}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def as_json(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Every number, row by row."""
    return [
        {
            "name": one.row.name,
            "title": one.row.title,
            "unit": one.row.unit,
            "cores": one.cores,
            "competitors": [
                {
                    "label": result.competitor.label,
                    "kind": result.competitor.kind,
                    "arguments": result.competitor.arguments,
                    "failure": result.failure,
                    "rounds": result.rounds,
                }
                for result in one.results
            ],
        }
        for one in measured
    ]


def publish(out: Path, readme: Path) -> None:
    """Put what was measured into `readme`; raises TableError where there is nothing, or no place for it."""
    measured = {name: out / f"{name}.md" for name in PUBLISHED if (out / f"{name}.md").exists()}
    if not measured:
        raise TableError(f"There is no {' or '.join(f'{name}.md' for name in PUBLISHED)} in {out}; measure first.")
    text = readme.read_text()
    for name, file in measured.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise TableError(f"{readme} has no place for the {name}, from {begin} to {end}.")
        text = f"{before}{begin}\n\n{file.read_text()}\n{end}{after}"
    readme.write_text(text)
