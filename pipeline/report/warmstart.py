"""SAC that starts from the multi-task policy on unseen tasks: how much experience does that save? Numbers, the paper's
Figures 8, 12 and 13, and the report.

The arms are SAC from scratch ("sac", and "sac_two_batches" with the warm start's two mini-batches) and SAC from a
multi-task policy ("warm_<method>"). Steps are environment steps per task, every one counted. `run["axis"]` is what the
figures count: "all_steps", or "after_warmup" as in the paper. `run["comparison"]` is what Figures 8 and 12 hold against
the warm start: "equal", SAC on the same tasks, or "paper", SAC on the training tasks.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.interpolate import interp1d

from mbml.methods import METHODS
from pipeline.report.drawing import INK, MissingData, band, figure, panels, seeds_of, step_axis
from pipeline.report.page import Page, draw
from pipeline.report.statistics import Estimate, percentiles, pooled_iqm, resampled
from pipeline.report.tables import facts, filled, per_task
from pipeline.report.wording import colours, method_name, score, with_interval
from pipeline.results import Results, ResultsError, cube

SECTION = "Warm start"
SHARE = 0.9
"""The level lies at this share of the way from plain SAC's first to its last mean return."""
PERCENT = f"{100 * SHARE:.0f} %"
POINTS = 5
"""Numbers of steps at which returns are compared."""
PLAIN, TWO_BATCHES, WARM, TRAINING, FIRST = "sac", "sac_two_batches", "warm_full", "sac_training", ""
_LOOKS = {
    PLAIN: ("SAC from scratch", "#7F4F24"),
    TWO_BATCHES: ("SAC from scratch, two batches", "#6e6e6e"),
    TRAINING: ("SAC from scratch, training tasks", "#7F4F24"),
    WARM: ("SAC from the policy", METHODS["full"].colour),
    "warm_no_ensemble": ("SAC from the policy without ensembles", METHODS["no_ensemble"].colour),
}


def arm_look(name: str) -> tuple[str, str]:
    """An arm's name as it is written for people, and its colour."""
    method = name.removeprefix("warm_")
    return _LOOKS.get(name) or (f"SAC from the policy {method_name(method)}", colours([method])[method])


class Arm(NamedTuple):
    """The runs of one way to start SAC, all on the same tasks and evaluated at the same steps."""

    name: str
    step: np.ndarray
    """Environment steps per task `[points]`; the first point is the policy before any RL."""
    returns: np.ndarray
    """Undiscounted returns `[seeds, points, tasks]`."""
    initial_steps: int = 0
    """Steps of the multi-task policy before; 0 from scratch."""
    warmup_steps: int = 0
    """Further steps before the first update."""
    policy_return: float = math.nan
    """Mean return of the multi-task policy itself in its last episode."""

    @property
    def title(self) -> str:
        """Its name as it is written for people."""
        return arm_look(self.name)[0]

    @property
    def mean(self) -> np.ndarray:
        """Mean over seeds and tasks `[points]`."""
        return self.returns.mean(axis=(0, 2))


def arms(results: Results) -> dict[str, Arm]:
    """The arms: from scratch first, then the warm ones in their order; a run that lacks points is an error."""
    rows, found = results.rows("return", split="test"), {}
    if rows.empty:
        raise ResultsError("No run of the warm-start experiment was recorded.")
    for name in sorted(rows["method"].unique(), key=lambda name: name.startswith("warm_")):
        curves = rows[rows["method"] == name]
        (_, step, _), returns = cube(curves, "seed", "step", "task", task=results.tasks("test"))
        if not np.isfinite(returns).all():
            raise ResultsError(f"The runs of arm {name} need the same tasks and steps.")
        policy = float(results.rows("policy_return", method=name)["value"].mean())
        found[name] = Arm(name, step, returns, **results.run["arms"][name], policy_return=policy)
    return found


def headed(found: dict[str, Arm]) -> str:
    """The warm arm of the headline and of Figures 8 and 13 (FIRST, to `_draw`): that of the first method."""
    return next((name for name in found if name.startswith("warm_")), WARM)


def level(curve: np.ndarray) -> np.ndarray:
    """Returns at SHARE of the way from the first to the last point of curves `[..., points]`; NaN without a rise."""
    before, final = curve[..., 0], curve[..., -1]
    return np.where(final > before, before + SHARE * (final - before), math.nan)


def crossing(step: np.ndarray, curve: np.ndarray, goal: np.ndarray, stay: bool) -> np.ndarray:
    """Step from which curves `[..., points]` are at or above their goal `[...]`: first, or to the end (`stay`).

    Linear between points and at least 1. Infinity where a curve never gets there, NaN where the goal is NaN.
    """
    above = curve >= goal[..., None]
    if stay:
        above = np.logical_and.accumulate(above[..., ::-1], axis=-1)[..., ::-1]
    after = above.argmax(axis=-1)
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(curve, place[..., None], -1)[..., 0] for place in (before, after))
    share = np.divide(goal - low, high - low, out=np.ones_like(goal), where=high > low)
    found = np.where(after > 0, step[before] + share * (step[after] - step[before]), step[0])
    return np.where(np.isnan(goal), math.nan, np.where(above.any(-1), np.maximum(found, 1), math.inf))


class Reached(NamedTuple):
    """Steps at which an arm reaches plain SAC's level; infinite where it does not, NaN where plain SAC did not improve.

    Of a warm arm divided by those of a cold one: infinite where only the cold arm reaches it, 0 where only the warm arm
    does, NaN where neither does.
    """

    mean: np.ndarray
    """Of the mean over seeds and tasks `[]`."""
    tasks: np.ndarray
    """Of the mean over seeds on each task, to plain SAC's level on that task `[tasks]`."""
    draws: np.ndarray
    """Of each resample, to plain SAC's level in that resample `[resamples]`."""

    def ratio(self, cold: "Reached") -> "Reached":
        """These steps as shares of a cold arm's."""
        with np.errstate(invalid="ignore"):  # neither reaches: infinity over infinity
            return Reached(*(one / other for one, other in zip(self, cold, strict=True)))

    def estimate(self) -> Estimate:
        """The mean's with the interval of the resamples that are known."""
        return percentiles(self.draws, float(self.mean))


Times = dict[tuple[str, bool], Reached]
"""By an arm's name, and whether it is to stay."""


def reached(arm: Arm, plain: Arm, draws: dict[str, np.ndarray], stay: bool) -> Reached:
    """When an arm is at the level of `plain`, first or to stay; `draws` holds every arm's mean curves
    `[resamples, points]`."""
    curves, plains = ((one.mean, one.returns.mean(axis=0).T, draws[one.name]) for one in (arm, plain))
    return Reached(*(crossing(arm.step, curve, level(goal), stay) for curve, goal in zip(curves, plains, strict=True)))


def points(arm: Arm, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Places on the x axis `[points]` and which points of the arm's curves stand there `[points]`.

    "after_warmup", as the paper, puts the policy before any RL at 0, then counts from the first update on and drops
    what lies before it.
    """
    if axis == "all_steps":
        return arm.step, np.arange(len(arm.step))
    after = arm.step - arm.initial_steps - arm.warmup_steps
    kept = np.union1d(0, np.flatnonzero(after > 0))
    return np.maximum(after[kept], 0), kept


def _training_arm(results: Results, warmup_steps: int) -> dict[str, Arm]:
    """SAC from scratch in Figures 8 and 12 is, as in the paper, the run that collected the training tasks' batches, on
    other tasks and with other networks: the comparison is unequal."""
    rows = results.rows("return", method="sac", split="train")
    if rows.empty:
        return {}
    (step, _), returns = cube(rows, "step", "task")  # which leave out the warm-up
    return {TRAINING: Arm(TRAINING, step, returns[None], warmup_steps=warmup_steps)}


def _draw(results: Results, names: tuple[str, ...], title: str) -> Figure:
    """Line: mean over tasks and seeds with its 95 % interval; nothing is smoothed. Dotted: mean return of the policy in
    its own last episode, without RL. Rings: from where on a mean curve stays above the level."""
    found, axis, plain = arms(results), results.run.get("axis", "all_steps"), PLAIN
    names = tuple(name or headed(found) for name in names)
    if results.run.get("comparison") == "paper" and PLAIN in names:
        plain, names = TRAINING, (TRAINING, *names[1:])
        found |= _training_arm(results, next(iter(found.values())).warmup_steps)
    if absent := [arm_look(name)[0] for name in names if name not in found]:
        raise MissingData(f"The figure needs an arm that was not run: {'; '.join(absent)}.")
    goal = level(found[plain].mean) if plain in found else np.array(math.nan)
    ring = {"marker": "o", "linestyle": "", "markerfacecolor": "none", "markeredgewidth": 1.8}
    made, (axes,) = panels(1, 1, 3.7)
    for arm in [found[name] for name in names]:
        x, kept = points(arm, axis)
        mean, colour = arm.mean[kept], arm_look(arm.name)[1]
        band(axes, x, arm.returns[:, kept], colour, seeds_of(arm.title, arm.returns), crowd=False)
        if math.isfinite(arm.policy_return):
            label = f"{arm.title.removeprefix('SAC from ')} itself (no RL)"
            axes.axhline(arm.policy_return, color=colour, linestyle=":", linewidth=1.3, zorder=1.5, label=label)
        if math.isfinite(goal):
            there = float(crossing(x, mean, goal, stay=True))
            axes.plot(there, np.interp(there, x, mean), color=colour, markersize=9, zorder=5, **ring)
    if math.isfinite(goal):
        label = f"{PERCENT} of the improvement of {arm_look(plain)[0]}"
        axes.axhline(float(goal), color=INK, linestyle=(0, (6, 4)), linewidth=0.8, zorder=1.5, label=label)
        axes.plot([], [], color=INK, markersize=6, label="stays above the level from here on", **ring)
    counted = "all counted" if axis == "all_steps" else "after the warm-up (earlier ones hidden)"
    words = {"title": f"{results.title}: {title}", "xlabel": f"environment steps per task, {counted}"}
    axes.set(**words, ylabel="average return")
    step_axis(axes, ticks=8)
    return made


@figure("figure-08", SECTION, "From the multi-task policy against from scratch", note=_draw.__doc__)
def against_scratch(results: Results) -> Figure:
    """SAC that starts from the multi-task policy, and SAC from random networks (paper, Fig. 8)."""
    return _draw(results, (PLAIN, FIRST), "SAC from the policy and from scratch")


@figure("figure-12", SECTION, "With and without reward ensembles", note=_draw.__doc__)
def without_ensembles(results: Results) -> Figure:
    """The same, beside a start from a policy that learned without reward ensembles (paper, Fig. 12)."""
    return _draw(results, (PLAIN, WARM, "warm_no_ensemble"), "SAC from policies with and without reward ensembles")


@figure("figure-13", SECTION, "Against SAC with the same two batches", note=_draw.__doc__)
def against_two_batches(results: Results) -> Figure:
    """SAC from the multi-task policy, and SAC from scratch with the same two batches an update (paper, Fig. 13)."""
    return _draw(results, (TWO_BATCHES, FIRST), "with the same two mini-batches an update")


def equal_steps(found: dict[str, Arm], draws: dict[str, np.ndarray], places: int) -> pd.DataFrame:
    """Returns at equal numbers of steps are over the range that all arms have in common; they need no level."""
    low, high = max(arm.step[0] for arm in found.values()), min(arm.step[-1] for arm in found.values())
    if not low < high:
        return pd.DataFrame()
    at = np.linspace(low, high, POINTS)
    fine = np.unique([low, high, *(step for arm in found.values() for step in arm.step if low < step < high)])

    def compared(arm: Arm, curves: np.ndarray) -> np.ndarray:
        values = interp1d(arm.step, curves)
        return np.vstack([values(at).T, np.trapezoid(values(fine), fine) / (high - low)])

    columns = {}
    for name, arm in found.items():
        mean = compared(arm, arm.mean[None])[:, 0]
        columns[arm.title] = [score(value, places) for value in mean]
        if PLAIN in found and name.startswith("warm_"):
            plain = found[PLAIN]
            leads = compared(arm, draws[name]) - compared(plain, draws[PLAIN])
            estimates = map(percentiles, leads, mean - compared(plain, plain.mean[None])[:, 0])
            columns[f"lead of {arm.title} (95 %)"] = [with_interval(lead, places) for lead in estimates]
    return pd.DataFrame(columns, index=[*(f"step {step:,.0f}" for step in at), "mean over these steps"])


def ratios(found: dict[str, Arm], times: Times) -> pd.DataFrame:
    """Intervals: 95 % bootstrap over the tasks, the same for all arms, and an arm's whole seeds. The paper shows one
    seed, shades one standard deviation over tasks, compares with SAC on the training tasks, hides 10,000 steps of SAC
    and 20,000 of the warm start, and takes as the level the return at epoch 350.

    A ratio of steps is infinite where only the arm from scratch reaches the level, 0 where only the warm start does,
    and a dash where neither does. Task by task, each task has its own level; so has each resample. The first
    crossing of a noisy curve comes too early, the step from which it stays too late."""
    rows = {}
    warm = [name for name in found if name.startswith("warm_")]
    for one, other in [(one, other) for one in warm for other in found if other not in warm]:
        stay, first = (times[one, stay].ratio(times[other, stay]) for stay in (True, False))
        own = times[one, True]
        rows[f"{found[one].title} / {found[other].title}"] = {
            "to stay (95 %)": with_interval(stay.estimate(), 2),
            "to cross first (95 %)": with_interval(first.estimate(), 2),
            "median of tasks": score(pd.Series(stay.tasks).median(), 2),
            "tasks that stay": f"{np.isfinite(own.tasks).sum()} of {(~np.isnan(own.tasks)).sum()}",
            "resamples that do not": f"{np.isinf(own.draws).mean():.1%}",
        }
    return filled(rows)


def _steps(arm: Arm, when: Reached | None) -> str:
    steps = math.nan if when is None else float(when.mean)
    return f"not within {arm.step[-1]:,.0f}" if math.isinf(steps) else score(steps, 0, ",")


def policies(found: dict[str, Arm], times: Times, places: int) -> pd.DataFrame:
    """The level lies at 90 % of the way from the mean return of SAC from scratch before learning to that at its last
    point. A crossing is on the straight line between two points; a policy that is there before any RL counts the steps
    before its first point. Steps are environment steps per task, every one counted but for evaluation episodes."""
    rows = {}
    for name, arm in found.items():
        rows[arm.title] = {
            "seeds": str(len(arm.returns)),
            "steps of the policy": f"{arm.initial_steps:,}",
            "then before the first update": f"{arm.warmup_steps:,}",
            "in all": f"{arm.step[-1]:,.0f}",
            "policy itself": score(arm.policy_return, places),
            "before RL": score(arm.mean[0], places),
            "end, IQM (95 %)": with_interval(pooled_iqm(arm.returns[:, -1]), places),
            "steps to stay above the level": _steps(arm, times.get((name, True))),
            "steps to the first crossing": _steps(arm, times.get((name, False))),
        }
    return filled(rows)


def _took(goal: str, warm: Arm, cold: Arm, times: Times, stay: bool) -> str:
    """How much faster, or who gets there at all."""
    mine, other = times[warm.name, stay], times[cold.name, stay]
    steps = f"{_steps(warm, mine)} against {_steps(cold, other)} environment steps per task"
    if np.isfinite([mine.mean, other.mean]).all():
        ratio = with_interval(mine.ratio(other).estimate(), 2)
        return f"To {goal}, {warm.title} took {ratio} times the steps of {cold.title}: {steps}, every one counted."
    did, others = ("did" if np.isfinite(when.mean) else "did not" for when in (mine, other))
    return f"To {goal}: {warm.title} {did}, {cold.title} {others} ({steps})."


def verdict(found: dict[str, Arm], times: Times, equal: pd.DataFrame, places: int) -> list[str]:
    """Per cold arm how soon the warm start stays above the level and first crosses it; its lead at equal steps."""
    if absent := [arm_look(name)[0] for name in (PLAIN, headed(found)) if name not in found]:
        return [f"No headline, for want of an arm: {' and '.join(absent)}."]
    warm, mean = found[headed(found)], found[PLAIN].mean
    before, final, goal = (score(float(value), places) for value in (mean[0], mean[-1], level(mean)))
    sentences = [f"The level is {goal}: {PERCENT} of the way from {before} to {final}."]
    if not times:
        sentences = [f"Plain SAC did not improve ({before} before learning, {final} at its end): there is no level."]
    for cold in [found[name] for name in (TWO_BATCHES, PLAIN) if name in found and times]:
        stay = f"reach {PERCENT} of plain SAC's improvement and stay above it"
        first = "cross it for the first time, which noise brings forward"
        sentences = [_took(stay, warm, cold, times, True), _took(first, warm, cold, times, False), *sentences]
    if len(equal):
        lead = equal[f"lead of {warm.title} (95 %)"].iloc[-1]
        sentences.insert(1, f"Over the steps that all arms share, {warm.title} leads by {lead} on average.")
    return sentences


def warmstart_page(results: Results, out: Path) -> Page:
    """The report of the experiment; its pictures are drawn into `out`."""
    found = arms(results)
    draws = dict(zip(found, resampled(*(arm.returns for arm in found.values())), strict=True))
    places = 1 if max(abs(arm.returns).max() for arm in found.values()) >= 10 else 3
    plain, times = found.get(PLAIN), {}
    if plain and np.isfinite(level(plain.mean)):
        times = {(arm.name, stay): reached(arm, plain, draws, stay) for arm in found.values() for stay in (True, False)}
    equal = equal_steps(found, draws, places)
    notes = [policies.__doc__, ratios.__doc__, equal_steps.__doc__]
    if results.run.get("comparison") == "paper":
        notes.append(_training_arm.__doc__)
    last = {arm.title: arm.returns[:, -1].mean(axis=0) for arm in found.values()}
    return Page(
        title=f"{results.title}: SAC from the multi-task policy on unseen tasks",
        verdict=verdict(found, times, equal, places),
        facts=facts(results),
        tables={
            "Return of the policies, and steps to the level": policies(found, times, places),
            "Return at equal numbers of environment steps": equal,
            "Ratio of steps to the level": ratios(found, times) if times else pd.DataFrame(),
        },
        notes=[" ".join(str(note).split()) for note in notes],
        pictures=draw(results, [SECTION], out),
        appendix={"Return on each task at the end, mean over seeds": per_task(results, "test", last, places)},
        config=results.run["config"],
    )
