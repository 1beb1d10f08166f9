"""`python -m tests.golden`: make the golden traces anew and write them to traces.json."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.golden.compare import FILE, Golden, compare, explain, here, sums
from tests.golden.trace import STAGES, make, versions


def generate(folder: Path) -> Golden:
    """What the code computes today; it leaves artefacts in `folder`."""
    return Golden(versions(), {name: sums(value) for name, value in make(folder)}, here())


def main() -> int:
    """Rewrite traces.json unless a stage's numbers changed under its old version; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument(
        "--anyway",
        action="store_true",
        help="also where numbers changed under an old version: the golden runs, a library or the machine is another",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = generate(Path(folder))
    if FILE.exists():
        recorded = Golden.read()
        difference = compare(recorded, found, STAGES)
        if difference.empty:
            print("No stage changed; traces.json stays as it is.")
            return 0
        print(explain(difference, recorded, found))
        if difference.unversioned and not arguments.anyway:
            print("\nNothing is written; --anyway writes all the same (see --help).")
            return 1
        changed = dict.fromkeys([*difference.changed, *difference.other, *difference.versions])
        print(f"\nStages that changed: {', '.join(changed)}.")
    found.write()
    print(f"{len(found.traces)} traces written to {FILE.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
