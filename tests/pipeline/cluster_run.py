"""Jobs and a sweep as a program of its own, for the tests of existing clusters: python cluster_run.py STORE [SWEEP]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.__main__ import main
from pipeline.cluster import connect
from pipeline.scheduler import execute
from tests.pipeline.workers import job

if __name__ == "__main__":
    cpus = {"small-0": 1.0, "small-1": 1.0, "large": 2.0, "huge": 9.0}
    with connect() as where:
        print(where, flush=True)
        jobs = [job(name, num_cpus=asked) for name, asked in cpus.items()]
        outcome = execute(jobs, sys.argv[1], poll_seconds=1.0, log=lambda line: print(line, flush=True))
        print("done", sorted(outcome.done), flush=True)
    if len(sys.argv) > 2:
        place = ["--store", sys.argv[1], "--out", f"{sys.argv[1]}-sweep"]
        sys.exit(main(["sweep", "--sweep", sys.argv[2], "--env", "umaze_goal", "--preset", "smoke", *place]))
