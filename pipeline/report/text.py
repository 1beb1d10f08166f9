"""A run's result as plain text for the terminal and as Markdown."""

import textwrap

from pipeline.report import comparison, tables
from pipeline.report.summary import SPLITS, check, plain

WIDTH = 100
_LONGEST_CELL = 40


def table(summary: dict) -> str:
    """Headline and per-task tables as aligned text, no line longer than 100 columns.

    Raises SummaryError when the summary contradicts itself.
    """
    summary = _checked(summary)
    parts = [_wrapped(", ".join(f"{name} {value}" for name, value in tables.facts(summary)))]
    parts.append(_wrapped(tables.verdict(summary)))
    for split, title in SPLITS.items():
        headers, rows = _headline(summary, split)
        if rows:
            parts.append(f"{title.capitalize()}\n{_aligned(headers, rows, text_columns=1)}")
    parts += [_wrapped(note) for note in tables.notes(summary)]
    parts += [f"{title}\n{_aligned(headers, rows, 1)}" for title, headers, rows in comparison.titled(summary)]
    parts += [_wrapped(note) for note in comparison.notes(summary)]
    for split, title in SPLITS.items():
        headers, rows = tables.per_task(summary, split)
        if rows:
            parts.append(f"Return on each of the {title} (last epoch)\n{_aligned(headers, rows, 2)}")
    return "\n\n".join(parts) + "\n"


def markdown(summary: dict) -> str:
    """The same tables as Markdown, for a README beside published results.

    Raises SummaryError when the summary contradicts itself.
    """
    summary = _checked(summary)
    parts = [f"# {summary.get('paper_name') or summary['environment']}"]
    parts.append(", ".join(f"{name} {value}" for name, value in tables.facts(summary)) + ".")
    parts.append(f"**{tables.verdict(summary)}**")
    if summary.get("protocol"):
        parts.append(summary["protocol"])
    for split, title in SPLITS.items():
        headers, rows = _headline(summary, split)
        if rows:
            parts.append(f"## {title.capitalize()}\n\n{_piped(headers, rows, text_columns=1)}")
    parts += [note.replace("*", "\\*") for note in tables.notes(summary)]
    parts += [f"## {title}\n\n{_piped(headers, rows, 1)}" for title, headers, rows in comparison.titled(summary)]
    parts += [note.replace("*", "\\*") for note in comparison.notes(summary)]
    for split, title in SPLITS.items():
        headers, rows = tables.per_task(summary, split)
        if rows:
            parts.append(f"## Return on each of the {title} (last epoch)\n\n{_piped(headers, rows, 2)}")
    return "\n\n".join(parts) + "\n"


def _checked(summary: dict) -> dict:
    summary = plain(summary)
    check(summary)
    return summary


def _headline(summary: dict, split: str) -> tuple[list[str], list[list[str]]]:
    places = tables.decimals(summary)
    lines = tables.headline(summary, split)
    return tables.HEADLINE_COLUMNS, [[line.title, *line.cells(places)] for line in lines]


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH)


def _aligned(headers: list[str], rows: list[list[str]], text_columns: int) -> str:
    """Columns of equal width; those that do not fit follow in further blocks that repeat the first ones."""
    grid = [[textwrap.shorten(cell, _LONGEST_CELL, placeholder="…") for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    fixed = list(range(text_columns))
    blocks, shown = [], list(fixed)
    for column in range(text_columns, len(headers)):
        if sum(widths[i] + 2 for i in [*shown, column]) - 2 > WIDTH and shown != fixed:
            blocks.append(shown)
            shown = list(fixed)
        shown = [*shown, column]
    blocks.append(shown)
    return "\n\n".join("\n".join(_row(row, block, widths, text_columns) for row in grid) for block in blocks)


def _row(row: list[str], block: list[int], widths: list[int], text_columns: int) -> str:
    cells = [
        row[column].ljust(widths[column]) if column < text_columns else row[column].rjust(widths[column])
        for column in block
    ]
    return "  ".join(cells).rstrip()


def _piped(headers: list[str], rows: list[list[str]], text_columns: int) -> str:
    rule = ["---" if column < text_columns else "---:" for column in range(len(headers))]
    lines = [headers, rule, *([cell.replace("|", "\\|").replace("*", "\\*") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
