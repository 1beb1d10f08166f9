"""From the logs of a small fleet of heated rooms to a policy that heats rooms which nobody has logged."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from examples.own_data.rooms import STEPS, Rooms, thermostat, write_logs
from pipeline.command import main

ROOT = Path(__file__).parents[2]
_TINY = {
    **{"teach.iterations": 1_500, "teach.evaluation-every": 500, "teach.tasks-per-actor": 15},
    **{"iql.hidden": "32 32", "iql.batch-size": 64, "iql.learning-rate": 0.003},
    **{"models.reward.steps": 600, "models.reward.hidden": "32 32", "models.reward.members": 3},
    **{"models.tasks-per-actor": 15, "relabel.pool": 300, "relabel.reward-threshold": 0.2},
    **{"evidence.steps": 800, "evidence.snapshot-every": 800, "evidence.batch-size": 32},
    **{"evidence.student.value-hidden": "32 32", "evidence.student.decoder-hidden": "64 64"},
    **{"evidence.student.perturbation-hidden": "16", "evidence.student.encoder.hidden": "64 64"},
    **{"fqe.steps": 600, "fqe.hidden": "32 32", "fqe.candidates": 8, "fqe.batch-size": 64},
}
"""Sizes that learn what can be learned here in half a minute of a processor."""


def test_rooms_warm_up_when_heated_and_cool_down_when_not():
    hot, cold = Rooms.draw(6, 3), Rooms.draw(6, 3)
    assert np.array_equal(hot.dawn(), cold.dawn())
    for _ in range(STEPS // 4):  # to the morning
        _, comfort = hot.heat(np.full(6, 2_500.0))
        cold.heat(np.zeros(6))
    assert (hot.inside > cold.inside + 3).all()
    np.testing.assert_allclose(comfort, -np.abs(hot.inside - hot.liked) - 0.25)
    assert (thermostat(np.array([10.0, 20.0, 40.0]), 20.0) == [2_500.0, 500.0, 0.0]).all()


def test_the_policy_beats_the_thermostat_and_the_blind_teacher_in_rooms_that_nobody_logged(tmp_path, embedded_ray):
    write_logs(tmp_path / "rooms.parquet", rooms=15, days=10)
    columns = str(ROOT / "examples" / "own_data" / "columns.yaml")
    logs = ["--data", str(tmp_path / "rooms.parquet"), "--columns", columns]
    places = ["--out", str(tmp_path / "fleet"), "--store", str(tmp_path / "store")]
    sizes = [word for name, value in _TINY.items() for word in (f"--{name}", *str(value).split())]
    assert main(["fit", *logs, *places, *sizes]) == 0
    command = [sys.executable, "-m", "examples.own_data.act", str(tmp_path / "fleet" / "policy")]
    picture = tmp_path / "rooms.png"
    surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(picture)], cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"policy less (.+): \S+ \(95 % (\S+) to", done.stdout))
    assert found.keys() == {"told nothing", "thermostat"}
    assert all(float(low) > 0.05 for low in found.values()), done.stdout
    assert picture.stat().st_size > 20_000
