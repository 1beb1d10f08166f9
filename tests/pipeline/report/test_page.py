import base64
import json
import re

import pytest

from pipeline.report import comparison, page
from pipeline.report.sections import SECTIONS
from pipeline.report.summary import SummaryError

NAMES = [picture.name for section in SECTIONS for picture in section.pictures]


@pytest.fixture(scope="module")
def written(make_summary, tmp_path_factory):
    """A report of one run, written once."""
    return page.write_report(make_summary(), tmp_path_factory.mktemp("report") / "new")


def test_page_summary_and_every_picture_are_written(written):
    assert written.name == "report.html"
    assert sorted(path.name for path in written.parent.iterdir()) == sorted(
        ["report.html", "summary.json", *(f"{name}.png" for name in NAMES)]
    )


def test_summary_is_strict_json(written, make_summary):
    def refuse(word: str) -> None:
        raise AssertionError(word)

    read = json.loads((written.parent / "summary.json").read_text(), parse_constant=refuse)
    assert read["headline"] == make_summary()["headline"]
    assert read["relabel"]["share"][0][0] is None


def test_page_holds_the_pictures_and_asks_for_nothing_else(written):
    html = written.read_text(encoding="utf-8")
    inlined = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert [base64.b64decode(png) for png in inlined] == [
        (written.parent / f"{name}.png").read_bytes() for name in NAMES
    ]
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!data:)', html)


def test_page_starts_with_what_was_run_and_the_result(written):
    html = written.read_text(encoding="utf-8")
    top = html[html.index("<body>") : html.index("<img")]
    for needed in ("umaze_goal", "laptop", "On unseen tasks, full reaches", "own BCQ", "optimistic"):
        assert needed in top


def test_page_shows_tasks_protocol_and_configuration(written, make_summary):
    html = written.read_text(encoding="utf-8")
    summary = make_summary()
    for needed in (summary["tasks"]["test"][3]["label"], summary["protocol"], "collect.steps", "30000"):
        assert needed in html


def test_only_a_comparison_is_set_side_by_side(written, make_summary, tmp_path, monkeypatch):
    assert "Side by side" not in written.read_text(encoding="utf-8")
    summary = make_summary(seeds=2, methods=("full", "neither"))
    monkeypatch.setattr(page, "SECTIONS", ())  # the pictures have tests of their own
    html = page.write_report(summary, tmp_path).read_text(encoding="utf-8")
    assert html.count("Side by side") == 1
    for title, columns, rows in comparison.titled(summary):
        assert title in html
        for cell in [*columns, *(cell for row in rows for cell in row)]:
            assert cell.replace("'", "&#39;") in html


def test_missing_parts_are_left_out_with_a_sentence(tmp_path):
    (tmp_path / "reward_swap.png").write_bytes(b"from an earlier report")
    html = page.write_report({"environment": "ant_dir"}, tmp_path).read_text(encoding="utf-8")
    assert "The reward-swap test was not run." in html
    assert "<img" not in html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "summary.json"]


def test_text_from_the_summary_is_escaped(tmp_path):
    summary = {"environment": "ant_dir", "protocol": "<b>bold</b>", "config": {"x": "<script>"}}
    html = page.write_report(summary, tmp_path).read_text(encoding="utf-8")
    assert "&lt;b&gt;bold" in html
    assert "<script" not in html


def test_a_contradictory_summary_writes_nothing(make_summary, tmp_path):
    summary = make_summary()
    summary["tasks"]["train"].pop()
    with pytest.raises(SummaryError, match="training tasks"):
        page.write_report(summary, tmp_path / "out")
    assert not (tmp_path / "out").exists()
