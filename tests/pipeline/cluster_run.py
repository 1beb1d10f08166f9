"""A run and a sweep as a program of its own, for the test of an existing cluster: python cluster_run.py STORE SWEEP."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.job import Job
from pipeline.__main__ import main
from pipeline.scheduler import Node, connect, execute
from tests.pipeline.workers import Adder

if __name__ == "__main__":
    cpus = {"small-0": 1.0, "small-1": 1.0, "large": 2.0, "huge": 9.0}
    nodes = [Node(Job("sum", name, name, {"number": 1}), Adder, asked) for name, asked in cpus.items()]
    with connect() as where:
        print(where)
        print("done", sorted(execute(nodes, sys.argv[1], poll_seconds=1.0).done))
    place = ["--store", sys.argv[1], "--out", f"{sys.argv[1]}-sweep"]
    sys.exit(main(["sweep", "--sweep", sys.argv[2], "--env", "umaze_goal", "--preset", "smoke", *place]))
