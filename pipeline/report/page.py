"""A report, written once and rendered three times: one self-contained HTML page, Markdown, text for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from pipeline.report import tables
from pipeline.report.behaviour import DOES
from pipeline.report.drawing import FIGURES, Picture, picture
from pipeline.report.figures import WELL
from pipeline.report.mechanism import KNOWS
from pipeline.report.sources import SOURCE
from pipeline.report.timeline import TOOK
from pipeline.results import Results

SECTIONS = (WELL, DOES, KNOWS, SOURCE, TOOK)


@dataclass(frozen=True)
class Page:
    """Everything that a report says, in its order. Tables are of text, by their titles; empty ones are left out."""

    title: str
    verdict: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    protocol: str = ""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    appendix: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    markdown: str = "report.md"
    """Name of the file in Markdown."""

    def render(self, kind: str) -> str:
        """The page as "html", which needs no other file and no network, as "md", or as "txt" for the terminal."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("pipeline.report", "."),
            autoescape=kind == "html",
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template(f"page.{kind}.j2").render(page=self)

    def write(self, out: Path) -> None:
        """Write `report.html` and the Markdown into `out`, beside the pictures."""
        (out / "report.html").write_text(self.render("html"), encoding="utf-8")
        (out / self.markdown).write_text(self.render("md"), encoding="utf-8")


def draw(results: Results, sections: Sequence[str], out: Path) -> list[Picture]:
    """Every figure of some sections, in their order, as a file in `out`."""
    return [picture(name, results, out) for section in sections for name in FIGURES if FIGURES[name].section == section]


def run_page(results: Results, out: Path) -> Page:
    """The report of a run or a sweep; its pictures are drawn into `out`."""
    headlines = tables.split_tables(results, tables.headline, "Return on {}")
    tasks = tables.split_tables(results, tables.last_scores, "Return on each of the {} (last epoch)")
    return Page(
        title=results.title,
        verdict=tables.verdict(results),
        facts=tables.facts(results),
        protocol=results.run["protocol"],
        tables=headlines | {"Diagnostics, mean (lowest to highest seed)": tables.diagnostics(results)},
        notes=tables.notes(results),
        pictures=draw(results, SECTIONS, out),
        appendix=tasks | {"What it took": tables.cost(results)},
        config=results.run["config"],
    )
