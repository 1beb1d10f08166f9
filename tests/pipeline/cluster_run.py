"""Jobs and a sweep as a program of its own, for the tests of clusters: python cluster_run.py STORE [SWEEP ENV]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tests
from pipeline.cluster import connect
from pipeline.command import main
from pipeline.scheduler import execute
from tests.pipeline.workers import job

if __name__ == "__main__":
    cpus = {"small-0": 1.0, "small-1": 1.0, "large": 2.0, "huge": 9.0}
    with connect(modules=[tests]) as where:
        print(where, flush=True)
        jobs = [job(name, num_cpus=asked) for name, asked in cpus.items()]
        outcome = execute(jobs, sys.argv[1], poll_seconds=1.0, log=lambda line: print(line, flush=True))
        print("done", sorted(outcome.done), flush=True)
    if len(sys.argv) > 2:
        place = ["--store", sys.argv[1], "--out", f"{sys.argv[1]}-sweep"]
        sys.exit(main(["sweep", "--sweep", sys.argv[2], "--env", sys.argv[3], "--preset", "smoke", *place]))
