"""The measurements of growth, as far as a moment goes."""

import json
import os
import time

import numpy as np
import pytest

from benchmarks.grow import Peak, main


def test_steps_are_measured_and_their_results_stay(tmp_path):
    sizes = ["--rounds", "1", "--seconds", "0.01", "--out", str(tmp_path)]
    for number in ("3", "20"):
        assert main(["--parts", "distill", "--tasks", number, *sizes]) == 0
    found = json.loads((tmp_path / "grow.json").read_text())["found"]
    for name in ("evidence", "full"):
        whole, *kinds = (line for what, line in found.items() if name in what)
        assert len(kinds) == 6
        for number in ("3", "20"):
            assert 0.3 * whole[number] < sum(line[number] for line in kinds)
            assert kinds[0][number] == max(line[number] for line in kinds) > 0  # matrix products
    assert (tmp_path / "grow.png").stat().st_size > 10_000
    assert "| step of full, ms |" in (tmp_path / "grow.md").read_text()


def test_what_fails_is_one_sentence_and_no_row(tmp_path, capfd):
    assert main(["--parts", "relabel", "--tasks", "2", "--rows", "100", "--out", str(tmp_path)]) == 2
    told = capfd.readouterr().err
    assert "Relabelling 2 tasks failed: " in told
    assert "Traceback" not in told
    assert not (tmp_path / "grow.json").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--tasks", "1"], "tasks is (1,); it should be greater than or equal to 2"),
        (["--rounds", "0"], "rounds is 0; it should be greater than or equal to 1"),
        (["--threads", "0"], "threads is 0; it should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, capfd, given, told):
    assert main([*given, "--out", str(tmp_path / "there")]) == 2
    assert told in capfd.readouterr().err
    assert not (tmp_path / "there").exists()


def test_memory_of_ones_own_is_seen():
    with Peak(os.getpid()) as before:
        time.sleep(1.2)
    with Peak(os.getpid()) as after:
        held = np.ones(100 * 2**17)  # 100 MiB
        time.sleep(1.2)
    assert after.mib - before.mib > 60
    assert held.sum() == 100 * 2**17
