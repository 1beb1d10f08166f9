"""Shoot at real runs and count what is lost: python -m tests.torture [--minutes 60] [--publish]

Every ordeal makes a smoke run of an environment in a store of its own and compares each file of each artefact with
those of a run that was left alone. What was done and what came of it is a table; `--publish` writes it into
docs/reliability.md between its marks.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.signals import hear
from tests.torture.ordeals import ORDEALS, Place, reference_run

_PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_MARKS = "<!-- counts -->", "<!-- end of counts -->"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description="Shoot at real runs and count what is lost. Takes half an hour on two quiet processors; "
        "stores are in the temporary folder and go at the end.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="no ordeal is begun after that")
    parser.add_argument("--env", default="umaze_goal", help="whose smoke run is shot at")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments and places")
    about = "; ".join(
        f"{name}: {(ordeal.__doc__ or '').splitlines()[0].rstrip('.')}" for name, ordeal in ORDEALS.items()
    )
    parser.add_argument("--only", nargs="*", choices=[*ORDEALS], default=[*ORDEALS], help=f"which: {about}")
    parser.add_argument("--publish", action="store_true", help=f"write the table into {_PAGE.name}")
    given = parser.parse_args()
    hear()
    started, rng = time.monotonic(), random.Random(given.seed)
    print(f"seed {given.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    rows = []
    try:
        reference = reference_run(Place(folder / "reference", given.env))
        pace = time.monotonic() - started
        print(f"a run left alone: {len(reference)} artefacts, {pace:.0f} s", flush=True)
        for number, name in enumerate(given.only):
            if time.monotonic() - started > 60 * given.minutes:
                print(f"no time for {name}", flush=True)
                continue
            row = ORDEALS[name](Place(folder / str(number), given.env, pace), reference, rng)
            rows.append(row)
            print(json.dumps(row), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = _table(rows)
    print(table)
    if given.publish:
        before, rest = _PAGE.read_text().split(_MARKS[0])
        _PAGE.write_text(f"{before}{_MARKS[0]}\n\n{table}\n\n{_MARKS[1]}{rest.split(_MARKS[1])[1]}")
    return int(any(row["lost"] for row in rows))


def _table(rows: list[dict[str, str | int]]) -> str:
    lines = ["| what was done | how often | what came of it | artefacts compared | that differ or are lost |"]
    lines.append("|---|---:|---|---:|---:|")
    lines += [f"| {r['done']} | {r['times']} | {r['came']} | {r['compared']} | {r['lost']} |" for r in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
