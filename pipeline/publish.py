"""What a run, a sweep and a set of figures leave in their folder, and the last words of a run that failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from pipeline.config import ConfigError
from pipeline.logs import write_logs
from pipeline.report.comparison import table_rows, task_rows
from pipeline.report.page import write_report
from pipeline.report.text import markdown, table
from pipeline.scheduler import Outcome

Log = Callable[[str], None]


def make_folder(out: Path) -> None:
    """Make the folder; ConfigError where that is not possible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The report folder {out} cannot be made ({error.strerror}); choose another with --out."
        ) from None


def publish(summary: dict[str, Any], out: Path, log: Log) -> None:
    """Write logs, tables, pictures and report of a summary into `out`; the tables in words to `log`."""
    write_logs(summary, out)
    write_report(summary, out)
    for name, rows in (("results", table_rows(summary)), ("tasks", task_rows(summary))):
        columns = pa.Table.from_pylist(rows)
        parquet.write_table(columns, out / f"{name}.parquet")
        csv.write_csv(columns, out / f"{name}.csv")
    pictures = "".join(f"\n![{path.stem}]({path.name})\n" for path in sorted(out.glob("*.png")))
    (out / "report.md").write_text(markdown(summary) + pictures)
    log(table(summary))


def say_failures(outcome: Outcome, store_url: str, log: Log) -> int:
    """Say what failed and what could not be run for it; the exit code."""
    for name, sentence in outcome.failed.items():
        log(f"FAILED   {name}: {sentence}")
    for name, reason in outcome.skipped.items():
        log(f"skipped  {name}: {reason}")
    log(f"Finished jobs are kept in {store_url}; the same command tries only the missing ones again.")
    return 2 if len(outcome.refused) == len(outcome.failed) else 1
