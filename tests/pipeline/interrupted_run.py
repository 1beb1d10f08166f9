"""A run as a program of its own, for the test that interrupts it: python interrupted_run.py STORE TOTAL."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.scheduler import Node, connect, execute
from tests.pipeline.workers import Counter, Job


def main() -> None:
    store, total = sys.argv[1], int(sys.argv[2])
    jobs = [Job("count", f"count {i}", f"key{i}", {"total": total}) for i in range(2)]
    with connect(num_cpus=2):
        outcome = execute(
            [Node(job, Counter) for job in jobs], store, log=lambda line: print(line, flush=True), poll_seconds=0.5
        )
    print("outcome", outcome.done, outcome.failed, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
