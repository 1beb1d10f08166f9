"""The tables and sentences of a run's report, as data frames of text and as text; page, Markdown and terminal print
these, so they cannot disagree."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from pipeline.report import statistics
from pipeline.report.wording import ABSENT, SIMPLE, duration, method_name, reference, score, with_interval
from pipeline.results import SPLITS, Results

EPOCHS = {"last": "last", "best": "best*"}


def decimals(results: Results) -> int:
    """How many decimals make sense for the size of this run's returns."""
    return 1 if results.table["value"][results.table["metric"].isin(["score", "reference"])].abs().max() >= 10 else 3


def at_epoch(results: Results, name: str, split: str, epoch: str) -> tuple[int, np.ndarray]:
    """Step and scores `[seeds, tasks]` of a method at its last epoch, or at its best on these tasks."""
    steps, scores = results.scores(name, split)
    place = statistics.best_epoch(scores) if epoch == "best" else -1
    return int(steps[place]), scores[:, place]


def headline(results: Results, split: str) -> pd.DataFrame:
    """One row per method and epoch, then per reference: its level, and the first method's last epoch against it."""
    names, places = results.methods("score", split=split), decimals(results)
    first = at_epoch(results, names[0], split, "last")[1] if names else None
    rows = {}

    def line(scores: np.ndarray, against: bool) -> dict[str, str]:
        over_seeds = scores.mean(axis=1).std(ddof=1) if len(scores) > 1 else math.nan
        cells = {
            "mean": score(float(scores.mean()), places),
            "std tasks": score(float(scores.mean(axis=0).std()), places),
            "std seeds": score(float(over_seeds), places),
            "IQM (95 %)": with_interval(statistics.pooled_iqm(scores), places),
        }
        if first is not None and against:
            cells[f"{method_name(names[0])} − it (95 %)"] = with_interval(statistics.difference(first, scores), places)
            cells[f"P({method_name(names[0])} better)"] = with_interval(statistics.improvement(first, scores), 2)
        return cells

    for name in names:
        for epoch, written in EPOCHS.items():
            step, scores = at_epoch(results, name, split, epoch)
            counts = {"seeds": str(len(scores)), "step": str(step)}
            rows[f"{method_name(name)}, {written}"] = counts | line(scores, name != names[0])
    for name, values in results.references(split).items():
        rows[reference(name).title] = line(values[None], against=True)
    return filled(pd.DataFrame.from_dict(rows, orient="index"))


def filled(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the columns that say nothing; dashes where a cell is not known."""
    frame = frame.fillna(ABSENT)
    return frame.loc[:, (frame != ABSENT).any()]


def per_task(results: Results, split: str) -> pd.DataFrame:
    """A row per task and one of the means: each method's last score (mean over seeds), each reference."""
    names = results.methods("score", split=split)
    columns = {method_name(n): at_epoch(results, n, split, "last")[1].mean(axis=0) for n in names}
    columns |= {reference(name).short: values for name, values in results.references(split).items()}
    labels = [f"{task}: {label}" for task, label in zip(results.tasks(split), results.labels(split), strict=True)]
    frame = pd.DataFrame(columns, index=labels)
    frame.loc["mean"] = frame.mean()
    return frame.map(lambda value: score(value, decimals(results)))


def _percent(value: float, places: int) -> str:
    return f"{value:.0%}"


# Header: the metric, how its number is written.
_DIAGNOSTICS: dict[str, tuple[str, Callable[[float, int], str]]] = {
    "swap: rewards' task": ("swap_follows_reward", _percent),
    "swap: state-actions' task": ("swap_follows_state_action", _percent),
    "own context identified": ("swap_own_identified", _percent),
    "own rollouts identified": ("identified", _percent),
    "return, nearest context": ("foreign_nearest", score),
    "return, farthest context": ("foreign_farthest", score),
    "last trajectory": ("last_trajectory", score),
    "eligible share": ("relabel_share", _percent),
    "RMSE of eligible labels": ("relabel_error_eligible", lambda value, places: f"{value:.3g}"),
}


def diagnostics(results: Results) -> pd.DataFrame:
    """A row per method: the mean over its seeds (lowest to highest) of every diagnostic."""
    rows: dict[str, dict[str, str]] = {}
    for header, (metric, write) in _DIAGNOSTICS.items():
        for name in results.methods(metric):
            found, places = _by_seed(results, metric, name), decimals(results)
            extremes = f" ({write(found.min(), places)} to {write(found.max(), places)})" if len(found) > 1 else ""
            rows.setdefault(method_name(name), {})[header] = write(float(found.mean()), places) + extremes
    return filled(pd.DataFrame.from_dict(rows, orient="index")) if rows else pd.DataFrame()


def _by_seed(results: Results, metric: str, name: str) -> np.ndarray:
    rows = results.rows(metric, method=name)
    if metric == "identified":  # after the last episode
        rows = rows[rows["index"] == rows["index"].max()]
    if metric == "relabel_error_eligible":  # root mean square over all eligible labels: all pools are equally large
        pair = ["task", "index"]
        weights = (
            results.rows("relabel_share", method=name).set_index(pair)["value"].reindex(rows.set_index(pair).index)
        )
        total = weights.sum()
        return np.array([math.sqrt((weights * rows["value"].to_numpy() ** 2).sum() / total) if total else math.nan])
    return rows.groupby("seed", dropna=False)["value"].mean().to_numpy()


def verdict(results: Results) -> list[str]:
    """Which references the first method's last epoch beats on the unseen tasks; a lost simple one comes first."""
    names = results.methods("score", split="test")
    if not names:
        return ["No score on unseen tasks was recorded."]
    scores, places = at_epoch(results, names[0], "test", "last")[1], decimals(results)
    name, references = method_name(names[0]), results.references("test")
    differences = {ref: statistics.difference(scores, row[None]) for ref, row in references.items()}
    simple = [ref for ref in SIMPLE if ref in references]
    strongest = max(simple, key=lambda ref: references[ref].mean(), default=None)

    beaten = [ref for ref, found in differences.items() if found.low > 0 and scores.size > 1]
    lost = [ref for ref, found in differences.items() if found.high < 0 and scores.size > 1]
    level = [ref for ref in differences if ref not in (*beaten, *lost)]

    def listed(wanted: list[str], sign: int = 1) -> str:
        written = []
        for ref in wanted:
            ends = sorted(sign * end for end in differences[ref][1:])
            value, low, high = (score(number, places) for number in (sign * differences[ref].value, *ends))
            by = "difference " if ref in level else "by "
            written.append(f"{reference(ref).title} ({by}{value}; 95 % interval {low} to {high})")
        return ", ".join(written)

    runs = f"{len(scores)} seed{'s' * (len(scores) > 1)}, {scores.shape[1]} task{'s' * (scores.shape[1] > 1)}"
    mean = f"On unseen tasks {name} (mean return {score(float(scores.mean()), places)}, last epoch; {runs})"
    words = {
        "beats": listed(beaten) or "no reference with certainty",
        "loses to": listed([ref for ref in lost if ref != strongest], -1),
        "cannot be told apart from": listed([ref for ref in level if ref != strongest]),
    }
    sentences = [f"{verb} {found}." for verb, found in words.items() if found]
    if strongest is not None and strongest not in beaten:
        found = (
            f"loses to {listed([strongest], -1)}"
            if strongest in lost
            else f"does not surely beat {listed([strongest])}"
        )
        sentences.insert(0, f"{found}, the strongest reference that need not be told the task.")
    first, *others = sentences
    return [f"{mean} {first}", *(f"It {sentence}" for sentence in others)]


def notes(results: Results) -> list[str]:
    """Sentences without which the tables would mislead."""
    name = method_name(next(iter(results.methods("score")), "the first method"))
    blind = results.rows("reference", method="blind_teacher")
    found = [
        "All numbers are undiscounted returns. std tasks: of the means over seeds; std seeds: of the means over "
        "tasks; IQM: mean of the middle half of all runs (a run: one seed on one task). Intervals: 95 % bootstrap "
        "that resamples whole seeds, because one policy serves all tasks, and tasks, the same for all that is "
        "compared. All seeds share the data and the teachers, so no interval covers other data.",
        f"{name} − it: difference of the means to {name} at its last epoch, paired over tasks. P({name} better): "
        "probability that one of its runs scores above one of the row's on the same task, ties counting half.",
        "* The best epoch is the step with the highest mean on these very tasks, so its score is optimistic.",
    ]
    if not blind.empty:
        found.append(
            f"The task-blind teacher is that of training task {_blind(results)}, the best on average on the training "
            "tasks (so there it is a bound); own teacher: the task's own, in fresh episodes. A bound is chosen on "
            "the very scores that it is listed with; the nearest teacher is told the task's parameters."
        )
    return found


def _blind(results: Results) -> str:
    means = results.rows("teacher_return", split="train").groupby("index")["value"].mean()
    labels = dict(zip(results.tasks("train"), results.labels("train"), strict=True))
    return f"{means.idxmax()}: {labels.get(int(means.idxmax()), '')}" if len(means) else ABSENT  # pyright: ignore[reportArgumentType]


def cost(results: Results) -> pd.DataFrame:
    """Wall time of each stage, which may overlap, and the largest resident memory of one of its processes."""
    rows = {
        row["stage"]: {
            "jobs": str(row["jobs"]),
            "reused": str(row["reused"]),
            "wall time": duration(row["wall_seconds"]),
            "peak memory": f"{row['peak_memory_mb']:,.0f} MB" if row["peak_memory_mb"] else ABSENT,
        }
        for row in results.run["cost"]
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def facts(results: Results) -> dict[str, str]:
    """What was run: sweep, environment, preset, seed, horizon, task counts, wall time; unknown ones are left out."""
    run = results.run
    sweep, paper, wall = run.get("sweep"), run.get("paper_name"), run.get("wall_seconds")
    found = {
        "sweep": f"{sweep['name']} ({sweep['description']})" if sweep else None,
        "environment": run["environment"] + (f" ({paper})" if paper else ""),
        **{name: run.get(name) for name in ("preset", "seed", "horizon")},
        "training tasks": len(results.tasks("train")) or None,
        "unseen tasks": len(results.tasks("test")) or None,
        "task parameter": run.get("parameter"),
        "wall time": None if wall is None else duration(wall),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def settings(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The nested configuration as (dotted name, value)."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def evaluations(results: Results) -> pd.DataFrame:
    """One row per variant, seed and step, with what the variant changes and mean and IQM of both splits."""
    rows = results.rows("score")
    rows = rows.assign(method=pd.Categorical(rows["method"], results.methods("score")))  # for their order
    wide = (
        rows.groupby(["method", "seed", "step", "split"], observed=True)["value"]
        .agg(mean="mean", iqm=statistics.iqm)
        .unstack()
    )
    wide.columns = [f"{split}_{what}" for what, split in wide.columns]
    wide = wide.reset_index().rename(columns={"method": "variant"})
    variants = {variant["label"]: variant for variant in results.run["variants"]}
    changes = pd.DataFrame(
        [{"method": v["method"], **v["changes"]} for v in variants.values()], list(variants), dtype=object
    )
    about = {name: results.run[name] for name in ("environment", "preset")} | {"data_seed": results.run["seed"]}
    table = wide.assign(**about).join(changes, on="variant")
    return table[[*about, "variant", *changes.columns, *wide.columns.drop("variant")]]


def split_tables(results: Results, table: Callable[[Results, str], pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """A table of both splits by the splits' titles; empty ones are left out."""
    found = {title: table(results, split) for split, title in SPLITS.items() if results.methods("score", split=split)}
    return {title: frame for title, frame in found.items() if len(frame)}
