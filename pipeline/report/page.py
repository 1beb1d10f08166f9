"""A report, written once and rendered three times: one self-contained HTML page, Markdown, text for the terminal."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from pipeline.report import tables
from pipeline.report.drawing import FIGURES, Picture, picture
from pipeline.report.figures import SOURCE, WELL
from pipeline.report.mechanism import KNOWS
from pipeline.results import Results

SECTIONS = (WELL, KNOWS, SOURCE)
WIDTH = 100
"""Columns of the terminal's tables."""


@dataclass(frozen=True)
class Table:
    """A table of text whose index is its first column."""

    title: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Page:
    """Everything that a report says, in its order."""

    title: str
    verdict: Sequence[str] = ()
    facts: dict[str, str] = field(default_factory=dict)
    protocol: str = ""
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    appendix: Sequence[Table] = ()
    settings: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Sentences and tables for the terminal."""
        parts = [*self.verdict, ", ".join(f"{name} {value}" for name, value in self.facts.items()), self.protocol]
        parts = [textwrap.fill(part, WIDTH, break_on_hyphens=False) for part in parts]
        parts += [_text(table) for table in self.tables]
        parts += [textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in self.notes]
        return "\n\n".join(part for part in [*parts, *(_text(t) for t in self.appendix)] if part) + "\n"

    def markdown(self) -> str:
        """The same as Markdown, with the pictures."""
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        parts = [
            f"# {self.title}",
            facts and f"{facts}.",
            *(f"**{sentence}**" for sentence in self.verdict[:1]),
            *self.verdict[1:],
            self.protocol,
        ]
        parts += [_markdown(table) for table in self.tables]
        parts += [note.replace("*", "\\*") for note in self.notes]
        for drawn in self.pictures:
            image = f"![{drawn.entry.title}]({drawn.file.name})\n\n" if drawn.file else ""
            parts.append(f"## {drawn.entry.title}\n\n{image}{drawn.text}")
        parts += [_markdown(table) for table in self.appendix]
        return "\n\n".join(part for part in parts if part) + "\n"

    def html(self) -> str:
        """The page, which needs no other file and no network."""
        sections: dict[str, list[Picture]] = {}
        for drawn in self.pictures:
            sections.setdefault(drawn.entry.section, []).append(drawn)
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("pipeline.report", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("page.html.j2").render(page=self, sections=sections, rendered=_html)

    def write(self, out: Path, markdown: str = "report.md") -> None:
        """Write `report.html` and the Markdown into `out`, beside the pictures."""
        (out / "report.html").write_text(self.html(), encoding="utf-8")
        (out / markdown).write_text(self.markdown(), encoding="utf-8")


def _text(table: Table) -> str:
    return f"{table.title}\n{table.frame.to_string(line_width=WIDTH)}"


def _markdown(table: Table) -> str:
    frame = table.frame.reset_index(names="")
    rule = ["---", *["---:"] * (frame.shape[1] - 1)]
    cells = [list(frame.columns), rule, *frame.to_numpy().tolist()]
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in row) + " |" for row in cells]
    return f"## {table.title}\n\n" + "\n".join(lines)


def _html(frame: pd.DataFrame) -> Any:
    return markupsafe.Markup(frame.to_html(border=0))  # pandas escapes the cells


def draw(results: Results, sections: Sequence[str], out: Path) -> list[Picture]:
    """Every figure of some sections, in their order, as a file in `out`."""
    return [picture(name, results, out) for section in sections for name in FIGURES if FIGURES[name].section == section]


def run_page(results: Results, out: Path) -> Page:
    """The report of a run or a sweep; its pictures are drawn into `out`."""
    found = [
        Table(f"Return on {title}", frame) for title, frame in tables.split_tables(results, tables.headline).items()
    ]
    if len(frame := tables.diagnostics(results)):
        found.append(Table("Diagnostics, mean (lowest to highest seed)", frame))
    tasks = tables.split_tables(results, tables.per_task).items()
    appendix = [Table(f"Return on each of the {title} (last epoch)", frame) for title, frame in tasks]
    appendix.append(Table("What it took", tables.cost(results)))
    return Page(
        title=results.title,
        verdict=tables.verdict(results),
        facts=tables.facts(results),
        protocol=results.run["protocol"],
        tables=found,
        notes=tables.notes(results),
        pictures=draw(results, SECTIONS, out),
        appendix=[table for table in appendix if len(table.frame)],
        settings=dict(tables.settings(results.run["config"])),
    )
