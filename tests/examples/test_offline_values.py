"""Fitted Q evaluation beside what really came out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.offline_values import compared

ROOT = Path(__file__).parents[2]


def test_what_is_compared():
    true = np.array([[1.0, 5.0], [2.0, 3.0], [3.0, 1.0]])  # three teachers, two tasks
    exact = compared(true, true)
    assert exact["order"] == pytest.approx(1)
    assert exact["chosen"] == exact["best"] == 3
    assert exact["own chosen"] == exact["own best"] == 4
    said = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 6.0]])  # the other way round
    wrong = compared(said, true)
    assert wrong["order"] == pytest.approx(-1)
    assert (wrong["chosen"], wrong["worst"], wrong["own chosen"]) == (2, 2, 1)


def test_a_task_on_which_all_teachers_are_alike_has_no_order():
    true = np.array([[1.0, 4.0], [1.0, 5.0]])
    assert compared(np.array([[0.0, 1.0], [1.0, 2.0]]), true)["order"] == pytest.approx(1)


def test_the_command_makes_what_is_missing(tmp_path):
    command = [
        *(sys.executable, "-m", "examples.offline_values", "umaze_goal", "--teacher", "bcq"),
        *("--preset", "smoke", "--store", str(tmp_path)),
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["env"] == "umaze_goal"
    assert line["worst"] <= line["chosen"] <= line["best"]
