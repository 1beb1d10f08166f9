"""Every stage and method computes what it computed when traces.json was written."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.__main__ import generate
from tests.golden.compare import Golden, compare, equal, explain, here, sums
from tests.golden.trace import STAGES

_SMALL = Golden(
    dict.fromkeys(STAGES, 1),
    {
        "maze/collect/reward": [10, 1.0, 2.0],
        "maze/teach/critic": [10, 1.0, 2.0],
        "maze/distill/full/decoder": [10, 1.0, 2.0],
    },
)


def test_numbers_are_as_recorded(tmp_path: Path) -> None:
    recorded, found = Golden.read(), generate(tmp_path)
    difference = compare(recorded, found, STAGES)
    if not difference.empty:
        pytest.fail(explain(difference, recorded, found), pytrace=False)


def test_every_stage_is_recorded() -> None:
    assert {name.split("/")[1] for name in Golden.read().traces} == set(STAGES)


def _explained(found: Golden) -> str:
    difference = compare(_SMALL, found, STAGES)
    return "" if difference.empty else explain(difference, _SMALL, found)


def test_equal_traces_have_nothing_to_explain() -> None:
    assert _explained(copy.deepcopy(_SMALL)) == ""


@pytest.mark.parametrize("trace", [[11, 1.0, 2.0], [10, 1.0003, 2.0], [10, 1.0, 2.0003], [10, math.nan, 2.0]])
def test_a_perturbed_trace_is_noticed(trace: list[float]) -> None:
    found = copy.deepcopy(_SMALL)
    found.traces["maze/teach/critic"] = trace
    text = _explained(found)
    assert "The numbers of `teach` changed but its version did not: raise it, then `python -m tests.golden`." in text
    assert "maze/teach/critic: expected 10 numbers, sum 1, of absolute values 2, found" in text


def test_rounding_is_noticed_only_on_the_machine_of_the_record() -> None:
    assert equal([10, 1.0, 2.0], [10, 1.0001, 1.9999])
    assert equal([10, 0.0, 0.0], [10, 5e-7, 5e-7])
    found = copy.deepcopy(_SMALL)
    found.traces["maze/teach/critic"] = [10, 1.00000001, 2.0]
    assert "The numbers of `teach` changed but its version did not" in _explained(found)
    found.made_with = {"model": "another"}
    assert _explained(found) == ""


def test_this_processor_is_told_from_others() -> None:
    assert here()["processor"].split()
    assert len(here()["model"].split()) >= 2 or not Path("/proc/cpuinfo").exists()


def test_all_differences_are_listed_and_the_first_stage_is_to_blame() -> None:
    found = copy.deepcopy(_SMALL)
    found.traces = {name: [10, 5.0, 6.0] for name in found.traces}
    text = _explained(found)
    assert "The numbers of `collect` changed but its version did not" in text
    assert text.count("its version did not") == 1
    assert all(f"{name}: expected" in text for name in found.traces)
    assert text.index("collect (1):") < text.index("teach (1):") < text.index("distill (1):")


def test_inputs_of_another_run_explain_nothing() -> None:
    found, recorded = copy.deepcopy(_SMALL), copy.deepcopy(_SMALL)
    recorded.traces["ant/collect/reward"] = [10, 1.0, 2.0]
    found.traces |= {"ant/collect/reward": [10, 5.0, 6.0], "maze/distill/full/decoder": [10, 5.0, 6.0]}
    assert compare(recorded, found, STAGES).unversioned == ["collect", "distill"]


def test_a_changed_version_is_noticed_with_and_without_changed_numbers() -> None:
    found = copy.deepcopy(_SMALL)
    found.versions["teach"] = 2
    wanted = "The version of `teach` is 2, the record is of 1: regenerate with `python -m tests.golden`."
    assert _explained(found) == wanted
    # What reads the teachers changed with them, and needs no version of its own.
    found.traces["maze/teach/critic"] = found.traces["maze/distill/full/decoder"] = [10, 5.0, 6.0]
    text = _explained(found)
    assert wanted in text
    assert "its version did not" not in text


def test_missing_and_new_traces_are_noticed() -> None:
    found = copy.deepcopy(_SMALL)
    found.traces["maze/teach/value"] = found.traces.pop("maze/teach/critic")
    text = _explained(found)
    assert "maze/teach/critic: recorded, but no longer made" in text
    assert "maze/teach/value: not recorded" in text


def test_other_tools_are_named_beside_changed_numbers() -> None:
    found = copy.deepcopy(_SMALL)
    found.made_with = {"torch": "9.9"}
    assert _explained(found) == ""
    found.traces["maze/collect/reward"] = [10, 5.0, 6.0]
    assert "torch None then, 9.9 now" in _explained(found)


def test_sums_take_everything_and_count_gaps() -> None:
    value = {"a": torch.tensor([1.0, -2.0]), "b": [None, math.nan, 3], "c": np.array([[True, False]])}
    assert sums(value) == [7, 3.0, 7.0]
    assert sums([]) == [0, 0.0, 0.0]
    assert sums([math.inf, -1.0]) == [2, math.inf, math.inf]


def test_the_record_survives_the_file(tmp_path: Path) -> None:
    _SMALL.write(tmp_path / "traces.json")
    assert Golden.read(tmp_path / "traces.json") == _SMALL
    assert '  "maze/teach/critic": [10, 1.0, 2.0]' in (tmp_path / "traces.json").read_text().splitlines()
