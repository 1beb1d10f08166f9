"""Whatever is typed or written into a sweep: one sentence and exit code 2, or something that can be planned.

MBML_EXAMPLES=1000 tries so many of each.
"""

import os
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mbml.logs import ColumnMap
from mbml.transitions import DatasetError
from pipeline.command import main
from pipeline.config import RunConfig
from pipeline.plan import plan
from pipeline.presets import preset
from pipeline.sweep_config import load_sweep, runnable, sweep_defaults

_SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def tries(number: int) -> settings:
    """Few in the suite, as many as one likes otherwise."""
    number = int(os.environ.get("MBML_EXAMPLES", number))
    return settings(max_examples=number, deadline=None, suppress_health_check=_SLOW)


def paths(config: object, before: str = "") -> list[str]:
    """Every field of a configuration, by its dotted path."""
    found = []
    for item in fields(config):  # pyright: ignore[reportArgumentType]
        value, path = getattr(config, item.name), f"{before}{item.name}"
        found += paths(value, f"{path}.") if is_dataclass(value) else [path]
    return found


PATHS = paths(preset("umaze_goal", "smoke"))
NUMBERS = st.sampled_from([0, -1, 1, 2, 0.5, 1e400, -1e400, float("nan"), 1e-320, 10**30, -(10**30), 2**63])
WORDS = st.sampled_from(
    ["", "nan", "../../etc/passwd", "-x", "--help-me", "\u00e9\u4e2d", "a b", "\x01", "null", "[1", "1e400"]
)
VALUES = st.one_of(NUMBERS, WORDS, st.booleans(), st.none(), st.text(max_size=8))
PIECES = st.sampled_from([
    *(f"!!{tag} " for tag in ("int", "bool", "float", "timestamp", "set", "binary", "null", "omap")),
    *("? ", ": ", "- ", "[", "]", "{", "}", ", ", "\n", "  ", "&a ", "*a", "<<: ", '"', "'", "\\U", "~", "3"),
    *("reward", "bounds", "units", "grid", "search", "seeds", "distill.margin", "uniform: ", "2020-99-99", ".inf", "="),
])  # fmt: skip
"""Of YAML files that are almost right."""
NESTED = st.one_of(VALUES, st.lists(VALUES, max_size=3), st.dictionaries(WORDS, VALUES, max_size=2))


@tries(25)
@given(path=st.sampled_from([*PATHS, "store", "out", "num_cpus", "no.such.field"]), value=st.one_of(NUMBERS, WORDS))
def test_any_value_of_any_option(path, value, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where nothing answers: what is good ends in a sentence as well
    monkeypatch.chdir(tmp_path)
    options = {"env": "umaze_goal", "preset": "smoke", "store": "store", "out": "out"} | {path: value}
    line = [word for name, said in options.items() for word in (f"--{name.replace('_', '-')}", str(said))]
    try:
        code = main(["run", *line])
    except SystemExit as stop:  # of the parser
        code = stop.code
    said = capsys.readouterr()
    assert code == 2, (line, said)
    assert "Traceback" not in said.out + said.err
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("part", ["grid", "alone", "set"])
@tries(60)
@given(path=st.sampled_from([*PATHS, "no.such.field"]), value=NESTED, listed=st.booleans())
def test_any_value_of_any_field_of_a_sweep(part, path, value, listed, tmp_path):
    planned_or_refused(tmp_path, {part: {path: [value] if listed else value}})


@tries(100)
@given(content=st.dictionaries(st.sampled_from([*(f.name for f in fields(RunConfig)), "grid", "seeds"]), NESTED))
def test_any_content_of_a_sweep(content, tmp_path):
    planned_or_refused(tmp_path, content)


@tries(100)
@given(content=st.binary(max_size=40))
def test_any_file_as_a_sweep(content, tmp_path):
    (tmp_path / "sweep.yaml").write_bytes(content)
    planned_or_refused(tmp_path)


@tries(150)
@given(content=st.lists(PIECES, max_size=12).map("".join))
def test_any_yaml_as_a_sweep_or_a_column_map(content, tmp_path):
    (tmp_path / "sweep.yaml").write_text(content)
    planned_or_refused(tmp_path)
    try:
        ColumnMap.load(tmp_path / "sweep.yaml")
        said = "sweep.yaml"
    except DatasetError as error:
        said = str(error)
    assert "sweep.yaml" in said
    assert "\n" not in said


def planned_or_refused(folder: Path, content: object = None) -> None:
    """Plan a sweep; the only exception is a ValueError with a sentence."""
    file = folder / "sweep.yaml"
    if content is not None:
        file.write_text(yaml.safe_dump(content, allow_unicode=True))
    try:
        sweep = load_sweep(str(file))
        config = sweep_defaults(sweep, preset("umaze_goal", "smoke"))
        plan(config, runnable(sweep, config, lambda line: None))
        said = "planned"
    except ValueError as error:
        said = str(error).strip()
    assert said
    assert "\n" not in said
