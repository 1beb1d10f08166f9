"""A run as a program of its own, for the test that interrupts it: python interrupted_run.py STORE TOTAL."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.stage import Job
from pipeline.cluster import connect
from pipeline.scheduler import execute
from tests.pipeline.workers import Count


def main() -> None:
    store, total = sys.argv[1], int(sys.argv[2])
    jobs = [Job(Count(f"count {i}", total), f"count {i}") for i in range(2)]
    with connect(num_cpus=2):
        outcome = execute(jobs, store, log=lambda line: print(line, flush=True), poll_seconds=0.5)
    print("outcome", outcome.done, outcome.failed, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
