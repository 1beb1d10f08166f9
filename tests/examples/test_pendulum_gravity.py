"""A family outside the package, from its file to the report."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from mbml import envs

ROOT = Path(__file__).parents[2]
NAME = "examples.pendulum_gravity:pendulum_gravity"


def test_the_reward_is_that_of_stepping_and_gravity_moves_the_pendulum():
    family = envs.get(NAME)
    assert (family.observation_size, family.action_size, family.horizon) == (3, 1, 200)
    ends = []
    for task in family.tasks("train")[:2]:
        env = family.environment(task)
        before, _ = env.reset(seed=1)
        for action in np.random.default_rng(0).uniform(-1, 1, (50, 1)).astype(np.float32):
            after, reward, *_ = env.step(action)
            assert family.reward is not None
            found = family.reward(before[None], action[None], after[None], task.parameter)
            np.testing.assert_allclose(found, reward, rtol=1e-4, atol=1e-4)
            before = after
        ends.append(before)
    assert np.abs(ends[0] - ends[1]).max() > 0.1


def test_one_command_from_a_users_file_to_the_report(tmp_path):
    shutil.copy(ROOT / "examples" / "pendulum_gravity.py", tmp_path / "my_pendulum.py")
    command = [
        *(sys.executable, "-m", "pipeline", "run", "--env", "my_pendulum:pendulum_gravity", "--preset", "smoke"),
        *("--num-cpus", "2", "--store", str(tmp_path / "store"), "--out", str(tmp_path / "report")),
    ]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Pendulum under gravity" in page
    assert "4.5 m/s2" in page
