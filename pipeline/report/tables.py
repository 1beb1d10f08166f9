"""The tables and sentences of a run's report, as data frames of text and as text; page, Markdown and terminal print
these, so they cannot disagree."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from actors.host import duration
from pipeline.report import statistics
from pipeline.report.wording import ABSENT, MANY, is_simple, method_name, reference, score, with_interval
from pipeline.results import SPLITS, Results, cube


def decimals(results: Results) -> int:
    """How many decimals make sense for the size of this run's returns."""
    return 1 if results.table["value"][results.table["metric"].isin(["score", "reference"])].abs().max() >= 10 else 3


def headline(results: Results, split: str) -> pd.DataFrame:
    """A row per method and epoch, then per reference; all numbers are undiscounted returns.

    A run is one seed on one task. std tasks: of the means over seeds; std seeds: of the means over tasks; IQM: mean of
    the middle half of all runs. "− it" and "P(better)": how much higher the first method's last epoch is on average,
    paired over tasks, and the probability that one of its runs scores above one of the row's on the same task, ties
    counting half. Intervals: 95 % bootstrap that resamples whole seeds, because one policy serves all tasks, and tasks,
    the same for all that is compared. All seeds share the data and the teachers, so no interval covers other data.
    * The best epoch is the step with the highest mean on these very tasks, so its score is optimistic.
    """
    names, places, rows = results.methods("score", split=split), decimals(results), {}
    levels: dict[str, tuple[str, str, np.ndarray]] = {}
    for name in names:
        steps, scores = results.scores(name, split)
        for words, place in (("last", -1), ("best*", statistics.best_epoch(scores))):
            levels[f"{method_name(name)}, {words}"] = str(len(scores)), str(steps[place]), scores[:, place]
    for name, values in results.references(split).items():
        levels[reference(name).title] = ABSENT, ABSENT, values[None]
    first, (_, _, own) = method_name(names[0]), next(iter(levels.values()))
    for place, (name, (seeds, step, scores)) in enumerate(levels.items()):
        rows[name] = {
            "seeds": seeds,
            "step": step,
            "mean": score(scores.mean(), places),
            "std tasks": score(scores.mean(axis=0).std(), places),
            "std seeds": score(scores.mean(axis=1).std(ddof=1), places) if len(scores) > 1 else ABSENT,
            "IQM (95 %)": with_interval(statistics.pooled_iqm(scores), places),
        }
        if place > 1:  # the first two rows are the first method's own
            rows[name][f"{first} − it (95 %)"] = with_interval(statistics.difference(own, scores), places)
            rows[name][f"P({first} better)"] = with_interval(statistics.improvement(own, scores), 2)
    return filled(rows)


def filled(rows: dict[str, dict[str, str]]) -> pd.DataFrame:
    """Rows of cells as a table without the columns that say nothing, with dashes where a cell is not known."""
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna(ABSENT)
    return frame.loc[:, (frame != ABSENT).any()]


WORST = 10
"""Of many tasks, how many have a row of their own."""
_SHARES = {
    "a twentieth are below": 0.05,
    "a quarter": 0.25,
    "half": 0.5,
    "three quarters": 0.75,
    "all but a twentieth": 0.95,
}


def per_task(results: Results, split: str, columns: Mapping[str, np.ndarray], places: int) -> pd.DataFrame:
    """A row per task and one of the means; `columns` holds values `[tasks]` by their title.

    Of many tasks only those with the lowest values in the first column have a row, beside every column's quantiles.
    """
    labels = [f"{task}: {label}" for task, label in zip(results.played(split), results.labels(split), strict=True)]
    frame = pd.DataFrame(columns, index=labels)
    rest = pd.DataFrame()
    if len(frame) > MANY:
        rest = frame.quantile(list(_SHARES.values())).set_axis(list(_SHARES))
    mean = frame.mean()
    if len(frame) > MANY:
        frame = frame.sort_values(frame.columns[0], kind="stable").head(WORST)
    frame = pd.concat([frame, rest]) if len(rest) else frame
    frame.loc["mean"] = mean
    return frame.map(lambda value: score(value, places))


def last_scores(results: Results, split: str) -> pd.DataFrame:
    """Task by task each method's last score, the mean over its seeds, and each reference.

    The task-blind teacher is the one that is best on average on the training tasks (so there it is a bound); own
    teacher: the task's own, in fresh episodes. A bound is chosen on the very scores that it is listed with; the best
    teacher per task by some episodes there, and scored by others; the nearest teacher is told the task's parameters. Of
    many tasks those with the lowest scores have a row.
    """
    names, references = results.methods("score", split=split), results.references(split)
    columns = {method_name(name): results.scores(name, split)[1][:, -1].mean(axis=0) for name in names}
    columns |= {reference(name).short: values for name, values in references.items()}
    return per_task(results, split, columns, decimals(results))


# Header: the metric, the format of its number; none for returns.
_DIAGNOSTICS = {
    "swap: rewards' task": ("swap_follows_reward", ".0%"),
    "swap: state-actions' task": ("swap_follows_state_action", ".0%"),
    "own context identified": ("swap_own_identified", ".0%"),
    "own rollouts identified": ("identified", ".0%"),
    "return, nearest context": ("foreign_nearest", ""),
    "return, farthest context": ("foreign_farthest", ""),
    "last trajectory": ("last_trajectory", ""),
    "eligible share": ("relabel_share", ".0%"),
    "RMSE of eligible labels": ("relabel_error_eligible", ".3g"),
}


def diagnostics(results: Results) -> pd.DataFrame:
    """A row per method: the mean over its seeds (lowest to highest) of every diagnostic."""
    rows: dict[str, dict[str, str]] = {}
    for header, (metric, written) in _DIAGNOSTICS.items():
        for name in results.methods(metric):
            found = _by_seed(results, metric, name)
            written = written or f".{decimals(results)}f"
            mean, low, high = (f"{value:{written}}" for value in (found.mean(), found.min(), found.max()))
            rows.setdefault(method_name(name), {})[header] = f"{mean} ({low} to {high})" if len(found) > 1 else mean
    return filled(rows)


def _by_seed(results: Results, metric: str, name: str) -> pd.Series:
    rows = results.rows(metric, method=name)
    if metric == "identified":  # after the last episode
        rows = rows[rows["index"] == rows["index"].max()]
    if metric == "relabel_error_eligible":  # root mean square over all eligible labels: all pools are equally large
        both = rows.merge(results.rows("relabel_share", method=name), on=["task", "index"])
        return pd.Series(np.sqrt(np.average(both["value_x"] ** 2, weights=both["value_y"])))
    return rows.groupby("seed", dropna=False)["value"].mean()


def verdict(results: Results) -> list[str]:
    """Which references the first method's last epoch beats on the unseen tasks; a lost simple one comes first."""
    names = results.methods("score", split="test")
    if not names:
        return ["No score on unseen tasks was recorded."]
    scores, places = results.scores(names[0], "test")[1][:, -1], decimals(results)
    references = results.references("test")
    strongest = max(filter(is_simple, references), key=lambda ref: references[ref].mean(), default="")
    told: dict[str, list[str]] = {"beats": [], "loses to": [], "cannot be told apart from": []}
    sentences = []
    for ref, values in references.items():
        found = statistics.difference(scores, values[None])
        certain = scores.size > 1 and (found.low > 0 or found.high < 0)
        verb = "cannot be told apart from" if not certain else "beats" if found.low > 0 else "loses to"
        ends = [-found.value, -found.high, -found.low] if verb == "loses to" else found
        value, low, high = (score(end, places) for end in ends)
        words = f"{reference(ref).title} ({'by' if certain else 'difference'} {value}; 95 % interval {low} to {high})"
        if ref == strongest and verb != "beats":
            verb = "loses to" if certain else "does not surely beat"
            sentences.append(f"{verb} {words}, the strongest reference that need not be told the task.")
        else:
            told[verb].append(words)
    told["beats"] = told["beats"] or ["no reference with certainty"]
    sentences += [f"{verb} {', '.join(words)}." for verb, words in told.items() if words]
    runs = f"{len(scores)} seed{'s' * (len(scores) > 1)}, {scores.shape[1]} task{'s' * (scores.shape[1] > 1)}"
    level = f"mean return {score(scores.mean(), places)}, last epoch; {runs}"
    sentences[0] = f"On unseen tasks {method_name(names[0])} ({level}) {sentences[0]}"
    found = [sentences[0], *(f"It {sentence}" for sentence in sentences[1:])]
    if results.run["preset"] == "smoke":
        found.insert(0, "The numbers of a smoke run mean nothing: it only shows that every stage runs.")
    return found


def notes(results: Results) -> list[str]:
    """Sentences without which the tables would mislead."""
    found = [headline.__doc__, "" if results.rows("reference").empty else last_scores.__doc__]
    for name, about in list(results.run["relabelling"].items())[:1]:
        found.append(f"Relabelling of {method_name(name)}: threshold {about['threshold']}. {about['error_note'] or ''}")
    return [" ".join(str(note).split()) for note in found if note]


def cost(results: Results) -> pd.DataFrame:
    """Wall time of each stage, which may overlap, the time of all its jobs, and the largest resident memory of one of
    its processes; reused jobs count with what they took when they were made, but for the wall time."""
    columns = ["stage", "jobs", "reused", "wall_seconds", "work_seconds", "peak_memory_mb"]
    frame = pd.DataFrame(results.run["cost"], columns=columns).set_index("stage").rename_axis(None)
    wall = frame.pop("wall_seconds")
    frame["wall time"] = wall.map(duration).mask(wall == 0, ABSENT)
    frame["all jobs"] = frame.pop("work_seconds").map(duration)
    frame["peak memory"] = frame.pop("peak_memory_mb").map(lambda size: f"{size:,.0f} MB" if size else ABSENT)
    return frame.astype(str)


def _blind(results: Results) -> str | None:
    """The training task whose teacher is best on average on the training tasks."""
    rows = results.rows("teacher_return", split="train")
    return results.labels("train")[cube(rows, "index", "task")[1].mean(axis=1).argmax()] if len(rows) else None


def facts(results: Results) -> dict[str, str]:
    """What was run: sweep, environment, preset, seed, horizon, task counts, wall time; unknown ones are left out."""
    run = results.run
    sweep, wall, policy = run.get("sweep"), run.get("wall_seconds"), run.get("policy")
    found = {
        "sweep": f"{sweep['name']} ({sweep['description']})" if sweep else None,
        "best variant": sweep and sweep.get("best") and f"{sweep['best']}, by the {sweep['objective']}",
        "environment": run["environment"] + f" ({run['title']})" * (run["title"] != run["environment"]),
        **{name: run.get(name) for name in ("preset", "seed", "horizon")},
        "training tasks": len(results.tasks("train")) or None,
        "of those, played": len(results.played("train")) if "played" in results.run else None,
        "unseen tasks": len(results.tasks("test")) or None,
        "task parameter": run.get("parameter") or None,
        "task of the task-blind teacher": _blind(results),
        "policy": policy
        and f"{method_name(policy['method'])} seed {policy['seed']}, the best one on training tasks "
        f"({score(policy['score'], decimals(results))})",
        "wall time": None if wall is None else duration(wall),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def evaluations(results: Results) -> pd.DataFrame:
    """One row per variant, seed and step, with what the variant changes and mean and IQM of both splits."""
    variants = {v["label"]: {"method": v["method"], **v["changes"]} for v in results.run["variants"]}
    changes = pd.DataFrame.from_dict(variants, orient="index", dtype=object)
    rows = results.rows("score").rename(columns={"method": "variant"})
    rows["variant"] = pd.Categorical(rows["variant"], results.methods("score"))  # for their order
    runs = rows.groupby(["variant", "seed", "step", "split"], observed=True)["value"]
    wide = runs.agg(mean="mean", iqm=statistics.iqm).unstack()
    wide.columns = [f"{split}_{what}" for what, split in wide.columns]
    about = {name: results.run[name] for name in ("environment", "preset")} | {"data_seed": results.run["seed"]}
    table = wide.reset_index().assign(**about).join(changes, on="variant")
    return table[[*about, "variant", *changes.columns, "seed", "step", *wide.columns]]


def split_tables(results: Results, table: Callable[..., pd.DataFrame], title: str) -> dict[str, pd.DataFrame]:
    """A table of the results and a split for each split that was scored, by its title."""
    scored = [split for split in SPLITS if results.methods("score", split=split)]
    return {title.format(SPLITS[split]): table(results, split) for split in scored}
