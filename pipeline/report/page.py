"""One self-contained HTML page with a run's result, beside its pictures and its summary.json."""

import base64
import io
import json
import pathlib
from typing import Any

import jinja2
from matplotlib.figure import Figure

from pipeline.report import comparison, tables
from pipeline.report.sections import SECTIONS, Picture
from pipeline.report.summary import SPLITS, MissingData, check, plain

_DOTS_PER_INCH = 150


def write_report(summary: dict, out: pathlib.Path) -> pathlib.Path:
    """Write summary.json, one PNG a picture and report.html into `out`; return the page's path.

    The page needs no other file and no network. A picture whose data the summary lacks is left out, with a
    sentence in its place. Arrays, tuples and paths in the summary are accepted; NaN becomes null.

    Raises SummaryError when the summary contradicts itself; nothing is written then.
    """
    summary = plain(summary)
    check(summary)
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    sections = [
        {
            "title": section.title,
            "pictures": [_picture(summary, picture, out) for picture in section.pictures],
        }
        for section in SECTIONS
    ]
    page = out / "report.html"
    page.write_text(_render(summary, sections), encoding="utf-8")
    return page


def _picture(summary: dict, picture: Picture, out: pathlib.Path) -> dict[str, Any]:
    """Draw one picture to its file and describe it for the template."""
    file = out / f"{picture.name}.png"
    described = {"name": picture.name, "title": picture.title, "file": file.name}
    try:
        png = _png(picture.draw(summary))
    except MissingData as missing:
        file.unlink(missing_ok=True)  # an earlier report in the same folder may have left one
        return described | {"missing": str(missing)}
    file.write_bytes(png)
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return described | {"missing": None, "source": source, "caption": _caption(summary, picture)}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    return buffer.getvalue()


def _caption(summary: dict, picture: Picture) -> str:
    relabel = summary.get("relabel") or {}
    return picture.caption.format(
        training_tasks=len((summary.get("tasks") or {}).get("train") or []) or "all",
        threshold=relabel.get("threshold", "not recorded"),
        error_note=relabel.get("error_note") or "",
    ).strip()


def _render(summary: dict, sections: list[dict]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    places = tables.decimals(summary)
    splits = []
    for split, title in SPLITS.items():
        columns, rows = tables.per_task(summary, split)
        splits.append(
            {
                "title": title,
                "headline": [(line, line.cells(places)) for line in tables.headline(summary, split)],
                "seeds": tables.seeds(summary, split),
                "columns": columns,
                "rows": rows,
            }
        )
    return environment.get_template("page.html.j2").render(
        name=summary.get("paper_name") or summary["environment"],
        facts=tables.facts(summary),
        verdict=tables.verdict(summary),
        splits=splits,
        headline_columns=tables.HEADLINE_COLUMNS,
        seed_columns=tables.SEED_COLUMNS,
        notes=tables.notes(summary),
        comparison=comparison.titled(summary),
        comparison_notes=comparison.notes(summary),
        sections=sections,
        protocol=summary.get("protocol") or "The summary does not say how the scores were measured.",
        settings=tables.settings(summary.get("config") or {}),
        files=[p["file"] for section in sections for p in section["pictures"] if not p["missing"]],
    )
