"""What runs, sweeps, warm starts and sets of figures leave in their folder, and the last words of one that failed."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from tensorboardX import SummaryWriter

from actors.store import REMEDY, Store
from pipeline.config import ConfigError
from pipeline.jobs import REPORT
from pipeline.outcome import Outcome
from pipeline.report.page import Page, run_page
from pipeline.report.tables import evaluations
from pipeline.report.wording import MANY
from pipeline.results import Results

Log = Callable[[str], None]


def make_folder(out: Path) -> None:
    """Make the folder; ConfigError where that is not possible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {out} cannot be made ({error.strerror}); choose another with --out.") from None


@contextmanager
def alone_in(out: Path, log: Log) -> Iterator[None]:
    """While another command writes its report into the same folder, wait."""
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log(f"waiting for another command that writes its report into {out}")
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(folder)


def publish(results: Results, out: Path, log: Log, page: Callable[[Results, Path], Page] = run_page) -> None:
    """Write results, curves, tables, pictures and the report into `out`; the tables in words to `log`."""
    log("drawing the report")
    results.save(out)
    if len(results.rows("score")):
        evaluations(results).to_csv(out / "results.csv", index=False)
    _write_curves(results.table, out)
    if "sweep" in results.run:
        _write_hparams(results, out)
    made = page(results, out)
    made.write(out)
    log(made.render("txt"))


def keep_report(store: Store, out: Path, log: Log) -> None:
    """Copy what is in `out` into the store, in the place of an earlier one, for those whose disk is not this one."""
    store.discard(REPORT, out.name)
    with store.create(REPORT, out.name, {"report": out.name}) as made:
        # Tune's own files and the logs of fit, which the store holds already, stay behind.
        behind = shutil.ignore_patterns("tune", "dataset", "dataset-*")
        shutil.copytree(out, made.path, ignore=behind, dirs_exist_ok=True)
    log(f"Report and policy are in the store: make report STORE={store.url} brings them.")


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


def _write_hparams(results: Results, out: Path) -> None:
    """What every trial of a sweep changed and its last returns, for TensorBoard's HParams."""
    scores = results.rows("score").sort_values("step").groupby(["method", "seed", "split", "task"]).tail(1)
    with SummaryWriter(str(out / "tensorboard")) as writer:
        for variant in results.run["variants"]:
            label = re.sub(r"[^-.=, \w]", "_", variant["label"])
            for seed, own in scores[scores["method"] == variant["label"]].groupby("seed"):
                given = {"method": variant["method"], "seed": seed, **variant["changes"]}
                plain = {name: v if isinstance(v, bool | int | float) else str(v) for name, v in given.items()}
                found = {f"{split}_return": float(v) for split, v in own.groupby("split")["value"].mean().items()}
                writer.add_hparams(plain, found, f"{label} seed {seed}")


def say_failures(outcome: Outcome, store_url: str, log: Log) -> int:
    """Say what failed and what could not be run for it; the exit code."""
    for name, sentence in outcome.failed.items():
        log(f"FAILED   {name}: {sentence}")
    for name, reason in outcome.skipped.items():
        log(f"skipped  {name}: {reason}")
    damaged = any(REMEDY in sentence for sentence in outcome.failed.values())
    again = "with --repair makes what is damaged anew" if damaged else "tries only the missing ones again"
    log(f"Finished jobs are kept in {store_url}; the same command {again}.")
    return 2 if len(outcome.refused) == len(outcome.failed) else 1
