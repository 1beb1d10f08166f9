"""The report of SAC that starts from the multi-task policy on unseen tasks: how much experience does that save?"""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.report.page import Page, Table, draw
from pipeline.report.statistics import RESAMPLES, percentiles, pooled_iqm
from pipeline.report.tables import facts, filled, settings
from pipeline.report.warmstart_figures import SECTION
from pipeline.report.warmstart_numbers import (
    PERCENT,
    PLAIN,
    SHARE,
    TWO_BATCHES,
    WARM,
    Arm,
    Draws,
    Speed,
    arm_title,
    arms,
    crossing,
    level,
    speed,
)
from pipeline.report.wording import ABSENT, score, with_interval
from pipeline.results import Results

POINTS = 5
"""Numbers of steps at which returns are compared."""


def equal_steps(found: dict[str, Arm], drawn: Draws, places: int) -> pd.DataFrame:
    """Mean returns at the same numbers of steps, over the range that all arms have in common, and on average over it;
    beside each warm arm its lead over SAC from scratch."""
    low, high = max(arm.step[0] for arm in found.values()), min(arm.step[-1] for arm in found.values())
    if not low < high:
        return pd.DataFrame()
    fine = np.unique([low, high, *(step for arm in found.values() for step in arm.step if low < step < high)])
    at: np.ndarray = np.linspace(low, high, POINTS)
    values = {}
    for name, arm in found.items():
        curves = np.apply_along_axis(lambda curve, arm=arm: np.interp(fine, arm.step, curve), -1, arm.returns)
        points = np.apply_along_axis(lambda curve: np.interp(at, fine, curve), -1, curves)
        values[name] = np.concatenate(
            [points, np.asarray(np.trapezoid(curves, fine) / (high - low))[..., None]], axis=-1
        )
    columns = {}
    for name, arm in found.items():
        mean = values[name].mean(axis=(0, 1))
        columns[arm.title] = [score(value, places) for value in mean]
        if PLAIN in found and name.startswith("warm_"):
            leads = drawn.curves(arm, values[name]) - drawn.curves(found[PLAIN], values[PLAIN])
            gap = mean - values[PLAIN].mean(axis=(0, 1))
            columns[f"lead of {arm.title} (95 %)"] = [
                with_interval(percentiles(lead, value), places) for lead, value in zip(leads.T, gap, strict=True)
            ]
    return pd.DataFrame(columns, index=[*(f"step {step:,.0f}" for step in at), "mean over these steps"])


def _steps(steps: float, arm: Arm) -> str:
    return f"not within {arm.step[-1]:,.0f}" if math.isinf(steps) else ABSENT if math.isnan(steps) else f"{steps:,.0f}"


def _took(goal: str, one: Speed, warm: Arm, cold: Arm) -> str:
    """How much faster, or who gets there at all."""
    steps = f"{_steps(one.warm_steps, warm)} against {_steps(one.cold_steps, cold)} environment steps per task"
    missed = {arm.title: math.isinf(end) for arm, end in ((warm, one.warm_steps), (cold, one.cold_steps))}
    if any(missed.values()):
        did = ", ".join(f"{title} {'did not' if failed else 'did'}" for title, failed in missed.items())
        return f"To {goal}: {did} ({steps})."
    ratio = with_interval(one.ratio, 2)
    return f"To {goal}, {warm.title} took {ratio} times the steps of {cold.title}: {steps}, every one counted."


def _verdict(
    found: dict[str, Arm], speeds: dict[tuple[str, str, bool], Speed], equal: pd.DataFrame, places: int
) -> list[str]:
    """Per cold arm how soon the warm start stays above the level and first crosses it; its lead at equal steps."""
    if absent := [arm_title(name) for name in (PLAIN, WARM) if name not in found]:
        return [f"No headline, for want of an arm: {' and '.join(absent)}."]
    mean, warm = found[PLAIN].mean, found[WARM]
    before, final = score(mean[0], places), score(mean[-1], places)
    if math.isnan(level(mean)):
        sentences = [
            f"Plain SAC did not improve (mean return {before} before learning, {final} at its end), so there is no "
            "level to reach and no ratio of steps."
        ]
    else:
        sentences = []
        for name in [name for name in (PLAIN, TWO_BATCHES) if name in found]:
            stay, first = (speeds[WARM, name, stay] for stay in (True, False))
            sentences += [
                _took(f"reach {PERCENT} of plain SAC's improvement and stay above it", stay, warm, found[name]),
                _took("cross it for the first time, which noise brings forward", first, warm, found[name]),
                f"Task by task the median ratio is {score(stay.task_ratio, 2)}, and {warm.title} stays above the "
                f"task's own level on {stay.tasks[0]} of {stay.tasks[1]} tasks on which plain SAC improved; it does "
                f"not stay above the level in {stay.warm_missed:.1%} of resamples.",
            ]
        sentences.append(
            f"The level is {score(float(level(mean)), places)}: {PERCENT} of the way from the mean return of "
            f"{found[PLAIN].title} before learning ({before}) to that at its end ({final})."
        )
    if len(equal):
        lead = equal[f"lead of {warm.title} (95 %)"].iloc[-1]
        sentences.insert(1, f"Over the steps that all arms share, {warm.title} leads by {lead} on average.")
    return sentences


def warmstart_page(results: Results, out: Path) -> Page:
    """The report of the experiment; its pictures are drawn into `out`."""
    found = arms(results)
    drawn, plain = Draws(found), found.get(PLAIN)
    cold, warm = ([arm for name, arm in found.items() if name.startswith("warm_") == kind] for kind in (False, True))
    places = 1 if max(abs(arm.returns).max() for arm in found.values()) >= 10 else 3
    pairs = [(one, other, stay) for one in warm for other in cold for stay in (True, False)] if plain else []
    speeds = {(w.name, c.name, stay): speed(w, c, plain, drawn, stay) for w, c, stay in pairs} if plain else {}
    ends = {
        arm.title: {
            "seeds": str(len(arm.returns)),
            "policy itself": score(arm.policy_return, places),
            "before RL": score(arm.mean[0], places),
            "end, IQM (95 %)": with_interval(pooled_iqm(arm.returns[..., -1]), places),
        }
        | (
            {}
            if plain is None
            else {
                f"steps to {words}": _steps(float(crossing(arm.step, arm.mean, level(plain.mean), stay)), arm)
                for stay, words in ((True, "stay above the level"), (False, "the first crossing"))
            }
        )
        for arm in found.values()
    }
    ratios = {
        f"{found[w].title} / {found[c].title}": {
            "to stay (95 %)": with_interval(one.ratio, 2),
            "to cross first (95 %)": with_interval(speeds[w, c, False].ratio, 2),
            "median of tasks": score(one.task_ratio, 2),
            "tasks that stay": f"{one.tasks[0]} of {one.tasks[1]}",
            "resamples that do not": f"{one.warm_missed:.1%}",
        }
        for (w, c, stay), one in speeds.items()
        if stay and not math.isnan(one.ratio.value)
    }
    labels = [f"{t}: {label}" for t, label in zip(results.tasks("test"), results.labels("test"), strict=True)]
    tasks = pd.DataFrame({arm.title: arm.returns[..., -1].mean(axis=0) for arm in found.values()}, index=labels)
    equal = equal_steps(found, drawn, places)
    made = [
        Table("Return of the policies, and steps to the level", filled(pd.DataFrame.from_dict(ends, orient="index"))),
        Table("Return at equal numbers of environment steps", equal),
        Table("Ratio of steps to the level", pd.DataFrame.from_dict(ratios, orient="index")),
    ]
    return Page(
        title=f"{results.title}: SAC from the multi-task policy on unseen tasks",
        verdict=_verdict(found, speeds, equal, places),
        facts=facts(results),
        tables=[table for table in made if len(table.frame)],
        notes=_notes(found),
        pictures=draw(results, [SECTION], out),
        appendix=[Table("Return on each task at the end, mean over seeds", tasks.map(lambda x: score(x, places)))],
        settings=dict(settings(results.run["config"])),
    )


def _notes(found: dict[str, Arm]) -> list[str]:
    lines = [
        f"{arm.title}: {arm.initial_steps:,} steps of the multi-task policy, {arm.warmup_steps:,} steps before the "
        f"first update, {arm.step[-1]:,.0f} steps in all; {len(arm.step)} points, {len(arm.returns)} seeds."
        for arm in found.values()
    ]
    return [
        "Step counts are environment steps per task; evaluation episodes are not counted. " + " ".join(lines),
        f"The level is r0 + {SHARE:g} (rT - r0), with r0 and rT the mean returns of SAC from scratch before learning "
        "and at its last point; returns may be negative, so a share of rT alone would not do. A crossing is on the "
        "straight line between two points; a policy that is there before any RL counts the steps before its first "
        "point. All arms are held against the level of plain SAC.",
        f"Intervals: percentile bootstrap, {RESAMPLES:,} resamples of the tasks (the same for all arms) and of an "
        "arm's whole seeds; level and crossings are computed anew in each. A ratio is infinite where only the arm "
        "from scratch reaches the level, 0 where only the warm start does, and left out where there is none. The "
        "first crossing of a noisy curve comes too early, the step from which it stays too late; returns at equal "
        "steps need no level.",
        "The paper reads its figures otherwise: one seed, shaded one standard deviation over tasks, steps counted "
        "after the warm-up, SAC from scratch on the training tasks, and as the level its return at epoch 350.",
    ]
