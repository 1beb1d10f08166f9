"""What runs, sweeps, warm starts and sets of figures leave in their folder, and the last words of one that failed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tensorboardX import SummaryWriter

from pipeline.config import ConfigError
from pipeline.report.page import Page, run_page
from pipeline.report.tables import evaluations
from pipeline.report.wording import MANY
from pipeline.results import Results
from pipeline.scheduler import Outcome

Log = Callable[[str], None]


def make_folder(out: Path) -> None:
    """Make the folder; ConfigError where that is not possible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = f"The report folder {out} cannot be made ({error.strerror})"
        raise ConfigError(f"{fault}; choose another with --out.") from None


def publish(results: Results, out: Path, log: Log, page: Callable[[Results, Path], Page] = run_page) -> None:
    """Write results, curves, tables, pictures and the report into `out`; the tables in words to `log`."""
    results.save(out)
    if len(results.rows("score")):
        evaluations(results).to_csv(out / "results.csv", index=False)
    _write_curves(results.table, out)
    made = page(results, out)
    made.write(out)
    log(made.render("txt"))


def _write_curves(table: pd.DataFrame, out: Path) -> None:
    """TensorBoard events and `curves.jsonl`: everything that has a step; scores as their mean over tasks, and so is
    everything where there are many."""
    other = table["metric"].isin(["reference", "selected"]) | table["metric"].str.startswith("behaviour_")
    rows = table[table["step"].notna() & ~other]
    rows = rows.assign(task=rows["task"].where((rows["metric"] != "score") & (rows["task"].nunique() <= MANY)))
    words = {"method": "{}", "seed": "seed-{}", "metric": "{}", "split": "{}", "task": "task-{:03d}"}
    shutil.rmtree(out / "tensorboard", ignore_errors=True)
    with (out / "curves.jsonl").open("w") as lines, SummaryWriter(str(out / "tensorboard")) as writer:
        for row in rows.groupby([*words, "step"], dropna=False)["value"].mean().reset_index().to_dict("records"):
            tag = "/".join(word.format(row[name]) for name, word in words.items() if pd.notna(row[name]))
            line = {"tag": tag, "step": int(row["step"]), "value": row["value"]}
            writer.add_scalar(tag, line["value"], line["step"])
            lines.write(json.dumps(line) + "\n")


def say_failures(outcome: Outcome, store_url: str, log: Log) -> int:
    """Say what failed and what could not be run for it; the exit code."""
    for name, sentence in outcome.failed.items():
        log(f"FAILED   {name}: {sentence}")
    for name, reason in outcome.skipped.items():
        log(f"skipped  {name}: {reason}")
    log(f"Finished jobs are kept in {store_url}; the same command tries only the missing ones again.")
    return 2 if len(outcome.refused) == len(outcome.failed) else 1
