"""Report of SAC that starts from the multi-task policy on unseen tasks: how much experience does that save?"""

import json
import math
import textwrap
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, parquet

from pipeline.report.statistics import RESAMPLES, Estimate
from pipeline.report.summary import plain
from pipeline.report.warmstart_figures import AXES, COMPARISONS, Picture, write_pictures
from pipeline.report.warmstart_numbers import (
    PERCENT,
    PLAIN,
    SHARE,
    TWO_BATCHES,
    WARM,
    Arm,
    Results,
    Speed,
    arm_name,
    arms,
    as_json,
    headline,
    policy_name,
    results,
    training_arm,
)
from pipeline.report.wording import ABSENT, score

__all__ = ["AXES", "COMPARISONS", "headline", "result_rows", "table", "write_warmstart"]

WIDTH = 99
_COLUMNS = pa.schema(
    {
        "arm": pa.string(),
        "seed": pa.int64(),
        "task": pa.int64(),
        "label": pa.string(),
        "initial_steps": pa.int64(),
        "warmup_steps": pa.int64(),
        "environment_steps": pa.int64(),
        "steps_after_warmup": pa.int64(),
        "return": pa.float64(),
    }
)


class ChoiceError(ValueError):
    """An option has a value that it does not know."""


def write_warmstart(summary: dict, out: Path, *, axis: str = "all_steps", comparison: str = "equal") -> list[Path]:
    """Write summary.json, results.csv and .parquet, the figures 8, 12 and 13, and report.md into `out`.

    `axis` is what the figures count: "all_steps", or "after_warmup" as in the paper. `comparison` is what Figures 8
    and 12 hold against the warm start: "equal", SAC on the same tasks, or "paper", SAC on the training tasks (C16).
    The numbers of the text are the same for all options. A figure without its arms is left out, with a sentence.

    Raises ChoiceError for another value of an option, SummaryError where the runs do not agree, MissingData where
    there are none; nothing is written then.
    """
    for name, value, known in (("axis", axis, AXES), ("comparison", comparison, COMPARISONS)):
        if value not in known:
            raise ChoiceError(f"{name} is one of {', '.join(known)}; got {value!r}")
    summary = plain(summary)
    found, out = results(summary), Path(out)
    if comparison == "paper" and summary.get("training_curves"):
        training_arm(summary, None)  # contradictions before anything is written
    out.mkdir(parents=True, exist_ok=True)
    pictures = write_pictures(summary, out, axis, comparison)
    rows = pa.Table.from_pylist(result_rows(summary), schema=_COLUMNS)
    parquet.write_table(rows, out / "results.parquet")
    csv.write_csv(rows, out / "results.csv")
    stored = summary | {"headline_warmstart": as_json(found)}
    (out / "summary.json").write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "report.md").write_text(_markdown(summary, found, pictures), encoding="utf-8")
    files = [out / name for name in ("summary.json", "results.csv", "results.parquet", "report.md")]
    return files + [picture.file for picture in pictures if picture.file is not None]


def result_rows(summary: dict) -> list[dict]:
    """One row per arm, seed, task and point; `steps_after_warmup` is negative before the first update."""
    found = arms(summary)
    names = _task_labels(summary, next(iter(found.values())))
    return [
        {
            "arm": name,
            "seed": seed,
            "task": task,
            "label": names[column],
            "initial_steps": arm.initial_steps,
            "warmup_steps": arm.warmup_steps,
            "environment_steps": int(step),
            "steps_after_warmup": int(step) - arm.initial_steps - arm.warmup_steps,
            "return": float(arm.returns[row, column, point]),
        }
        for name, arm in found.items()
        for row, seed in enumerate(arm.seeds)
        for column, task in enumerate(arm.tasks)
        for point, step in enumerate(arm.step)
    ]


def table(summary: dict) -> str:
    """Headline and tables as text of less than 100 columns.

    Raises SummaryError where the runs do not agree, MissingData where there are none.
    """
    found = results(summary)
    parts = [textwrap.fill(sentence, WIDTH, break_on_hyphens=False) for sentence in _sentences(found)]
    parts += [f"{title}\n{_aligned(rows)}" for title, rows in _tables(found)]
    return "\n\n".join(parts) + "\n"


def _task_labels(summary: dict, arm: Arm) -> list[str]:
    known = {task["index"]: str(task["label"]) for task in (summary.get("tasks") or {}).get("test") or []}
    return [known.get(task, str(task)) for task in arm.tasks]


def _decimals(found: Results) -> int:
    return 1 if max(abs(arm.returns).max() for arm in found.arms.values()) >= 10 else 3


def _steps(steps: float, arm: Arm) -> str:
    return f"not within {arm.step[-1]:,.0f}" if math.isinf(steps) else ABSENT if math.isnan(steps) else f"{steps:,.0f}"


def _factor(ratio: float) -> str:
    return "infinite" if math.isinf(ratio) else score(ratio, 2)


def _interval(estimate: Estimate) -> str:
    return f"{_factor(estimate.low)} to {_factor(estimate.high)}"


def _ratio(one: Speed) -> str:
    """The ratio with its interval; in words where an arm does not reach the level."""
    words = {
        (True, False): "never / reached",
        (False, True): "reached / never",
        (True, True): "never / never",
    }
    missed = (math.isinf(one.warm_steps), math.isinf(one.cold_steps))
    return f"{words.get(missed) or score(one.ratio.value, 2)} ({_interval(one.ratio)})"


def _sentences(found: Results) -> list[str]:
    """The headline, one sentence or two a cold arm, then what bounds its trust."""
    if absent := [arm_name(name) for name in (PLAIN, WARM) if name not in found.arms]:
        return [f"No headline, for want of an arm: {' and '.join(absent)}."]
    places = _decimals(found)
    before, final = score(found.level.before, places), score(found.level.final, places)
    if not math.isfinite(found.level.value):
        return [
            f"Plain SAC did not improve (mean return {before} before learning, {final} at its end), so there is "
            "no level to reach and no ratio of steps."
        ]
    level = (
        f"Level: {score(found.level.value, places)}, which is {PERCENT} of the way from the mean return of "
        f"{arm_name(PLAIN)} before learning ({before}) to that at its end ({final})."
    )
    mine = [one for one in found.speeds if one.warm == WARM]
    return [*(_verdict(one, found) for one in mine), level, *(_robustness(one, found) for one in mine)]


def _verdict(one: Speed, found: Results) -> str:
    warm, cold = arm_name(one.warm), arm_name(one.cold)
    warm_run, cold_run = found.arms[one.warm], found.arms[one.cold]
    goal = f"{PERCENT} of plain SAC's improvement" if one.cold == PLAIN else "the same level, that of plain SAC"
    steps = f"{_steps(one.warm_steps, warm_run)} against {_steps(one.cold_steps, cold_run)} environment steps per task"
    if math.isinf(one.warm_steps) and math.isinf(one.cold_steps):
        return f"Neither {warm} nor {cold} reached {goal}: {steps}."
    if math.isinf(one.warm_steps):
        return f"{warm} did not reach {goal}, {cold} did: {steps}."
    if math.isinf(one.cold_steps):
        return f"{warm} reached {goal}, {cold} did not: {steps}."
    if one.ratio.over == "nothing":
        trust = "one task and one seed: nothing to resample, an interval of width zero"
    else:
        trust = f"95 % interval {_interval(one.ratio)}, bootstrap over {one.ratio.over}"
    return (
        f"To reach {goal}, {warm} took {one.ratio.value:.2f} times the environment steps of {cold} ({trust}): {steps}, "
        "every one counted."
    )


def _robustness(one: Speed, found: Results) -> str:
    tasks = len(found.arms[one.warm].tasks)
    text = (
        f"Against {arm_name(one.cold)}, task by task: the median ratio is {_factor(one.task_ratio)}; the "
        f"warm start reached the task's own level on {one.tasks_reached} of the {one.tasks_improved} tasks on which "
        f"plain SAC improved (of {tasks} in all)."
    )
    missed = {
        "the warm start misses the level": one.warm_missed,
        f"{arm_name(one.cold)} misses the level": one.cold_missed,
        "plain SAC does not improve": one.not_improved,
    }
    if any(missed.values()):
        shares = "; ".join(f"{what} in {100 * share:.1f} %" for what, share in missed.items() if share)
        text += f" Of {RESAMPLES:,} resamples: {shares}."
    return text


def _tables(found: Results) -> list[tuple[str, list[list[str]]]]:
    """Titles and rows, the first of them the headers: returns, steps, and ratios against each cold arm."""
    places = _decimals(found)

    def with_interval(value: Estimate) -> str:
        return f"{score(value.value, places)} ({score(value.low, places)} to {score(value.high, places)})"

    ends = [["arm", "seeds", "before RL", "end, IQM (95 % interval)"]]
    means = [["arm", "mean return (95 % interval)", "steps to level"]]
    for name, arm in found.arms.items():
        before = score(float(arm.returns[..., 0].mean()), places)
        ends.append([arm_name(name), str(len(arm.seeds)), before, with_interval(found.final[name])])
        means.append([arm_name(name), with_interval(found.area[name]), _arm_steps(name, found)])
    low, high = found.span
    title = f"Mean return from step {low:,.0f} to {high:,.0f}, and steps to the level"
    if math.isnan(low):
        means = [[row[0], *row[2:]] for row in means]
        title = "Steps to the level (the arms have no range of steps in common to average over)"
    parts = [("Return of the policies", ends), (title, means)]
    for cold in (PLAIN, TWO_BATCHES):
        rows = [
            [
                arm_name(one.warm),
                _ratio(one),
                _factor(one.task_ratio),
                f"{one.tasks_reached} of {one.tasks_improved}",
            ]
            for one in found.speeds
            if one.cold == cold and math.isfinite(found.level.value)
        ]
        headers = ["arm", "ratio (95 % interval)", "median of tasks", "tasks reached"]
        parts += [(f"Steps to the level, relative to {arm_name(cold)}", [headers, *rows])] * bool(rows)
    return parts


def _arm_steps(name: str, found: Results) -> str:
    known = {one.warm: one.warm_steps for one in found.speeds} | {one.cold: one.cold_steps for one in found.speeds}
    return _steps(known.get(name, math.nan), found.arms[name])


def _per_task(summary: dict, found: Results) -> list[list[str]]:
    places = _decimals(found)
    columns = {arm_name(name): arm.returns[..., -1].mean(axis=0) for name, arm in found.arms.items()}
    for name, arm in found.arms.items():
        if arm.policy_return is not None:
            columns[f"{policy_name(name)} itself"] = arm.policy_return.mean(axis=0)
    first = next(iter(found.arms.values()))
    rows = [
        [str(task), label, *(score(float(values[place]), places) for values in columns.values())]
        for place, (task, label) in enumerate(zip(first.tasks, _task_labels(summary, first), strict=True))
    ]
    return [["task", "label", *columns], *rows]


def _markdown(summary: dict, found: Results, pictures: list[Picture]) -> str:
    name = summary.get("paper_name") or summary["environment"]
    first, *others = _sentences(found)
    facts = ", ".join(f"{what} {summary[what]}" for what in ("preset", "seed", "horizon") if what in summary)
    parts = [f"# {name}: SAC from the multi-task policy on unseen tasks", f"{facts}." * bool(facts), f"**{first}**"]
    parts += others
    parts += [f"## {title}\n\n{_piped(rows)}" for title, rows in _tables(found)]
    for picture in pictures:
        image = f"![{picture.title}]({picture.file.name})\n\n" if picture.file else ""
        parts.append(f"## Figure {picture.number}: {picture.title}\n\n{image}{picture.text}")
    parts.append(
        f"## Return on each task at the end, mean over seeds\n\n{_piped(_per_task(summary, found), text_columns=2)}"
    )
    parts.append(f"## Protocol\n\n{_protocol(summary, found)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _protocol(summary: dict, found: Results) -> str:
    parameter = summary.get("parameter")
    lines = [
        f"Each arm learns on {len(next(iter(found.arms.values())).tasks)} tasks that the multi-task policy was not "
        f"trained on{f' (task parameter: {parameter})' * bool(parameter)}; a policy is evaluated at every point of its "
        "curve. Step counts are environment steps per task; evaluation episodes are not counted.",
    ]
    for name, arm in found.arms.items():
        initial = f"{arm.initial_steps:,} steps of the multi-task policy, then " * bool(arm.initial_steps)
        lines.append(
            f"{arm_name(name)}: {initial}{arm.warmup_steps:,} steps before the first update, {arm.step[-1]:,.0f} steps "
            f"in all; {len(arm.step)} points; seeds {', '.join(map(str, arm.seeds))}."
        )
    lines += [
        f"The level is r0 + {SHARE:g} (rT - r0), with r0 and rT the mean returns of SAC from scratch before learning "
        "and at its last point, over tasks and seeds; returns may be negative, so a share of rT alone would not do. "
        "An arm reaches it where its mean curve is first at or above it, on the straight line between two points "
        "(before the second point that is, if anything, too early: the warm-up does not change the policy); a policy "
        "that is there before any RL counts the steps before its first point, at least 1. SAC with two "
        "mini-batches is held against the level of plain SAC, not its own.",
        f"Intervals: percentile bootstrap, {RESAMPLES:,} resamples of the tasks (the same for all arms) and, where an "
        "arm has several, of its seeds; a seed is drawn with all its tasks, since one multi-task policy serves them. "
        "Level and crossings are computed anew in each resample. A ratio is infinite where only the arm "
        "from scratch reaches the level, 0 where only the warm start does, and left out where there is none.",
        "The crossing of a noisy curve is fragile: the medians over tasks and the mean returns over the steps that all "
        "arms share are there to check it. The interquartile mean at the end has the interval of the other reports: "
        "seeds resampled within tasks, or the tasks where there is one seed.",
        "The paper reads its figures otherwise: one seed, shaded one standard deviation over tasks, steps counted "
        "after the warm-up, SAC from scratch on the training tasks, and as the level its return at epoch 350, where "
        "the plot ends.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    )


def _piped(rows: list[list[str]], text_columns: int = 1) -> str:
    rule = ["---" if column < text_columns else "---:" for column in range(len(rows[0]))]
    lines = [rows[0], rule, *([cell.replace("|", "\\|") for cell in row] for row in rows[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
