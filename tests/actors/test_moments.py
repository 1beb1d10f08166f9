"""A job killed at the worst moments: `make torture` tries more of them, and every stage."""

import json
import subprocess
import sys


def test_a_job_killed_just_before_it_changes_its_folder_ends_with_the_same_bits(tmp_path):
    given = ["umaze_goal", str(tmp_path), "0", "8", "collect", "teach"]
    command = [sys.executable, "-m", "tests.torture.moments", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == {"collect", "teach"}
    for moments, killed, differ in found.values():
        assert moments > 8  # shards, checkpoints, the manifest, the artefact's own name
        assert killed >= 5  # checkpoints go by the clock
        assert differ == 0
