"""Memory that is freed and wanted again, by the page faults of a process."""

import subprocess
import sys

import pytest

_COUNT = """
import resource, sys, torch
from mbml.allocation import keep_freed_memory
from mbml.teachers.bcq import BCQ, BCQConfig
from tests.mbml.toys import LAYOUT, random_rows, seeded

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
learner, rows = BCQ(BCQConfig(), LAYOUT, 1, seeded()), random_rows(1, 100)
for number in range(15):
    learner.update(rows)
    if number == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of ten updates of BCQ with the paper's networks."""
    return int(subprocess.run([sys.executable, "-c", _COUNT, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="is about the C library of Linux")
def test_pages_that_are_freed_are_used_again():
    assert faults("kept") < faults("given back") / 10
