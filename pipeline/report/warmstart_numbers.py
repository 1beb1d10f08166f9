"""How much experience a warm start saves: steps to a level, mean returns and bootstrap intervals (section 8).

The arms are SAC from scratch ("sac", and "sac_two_batches" with the warm start's two mini-batches) and SAC from a
multi-task policy ("warm_<method>"). Steps are environment steps per task, every one counted.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from pipeline.report.statistics import PERCENTILES, RESAMPLES, Estimate, pooled_iqm
from pipeline.report.summary import MissingData, SummaryError, numbers, plain
from pipeline.report.wording import method_name

SHARE = 0.9
"""The level lies at this share of the way from plain SAC's first to its last mean return."""
PERCENT = f"{100 * SHARE:.0f} %"
PLAIN, TWO_BATCHES, WARM, TRAINING = "sac", "sac_two_batches", "warm_full", "sac_training"
_NAMES = {
    PLAIN: "SAC from scratch",
    TWO_BATCHES: "SAC from scratch, two mini-batches",
    TRAINING: "SAC from scratch, training tasks",
    WARM: "SAC from the multi-task policy",
    "warm_no_ensemble": "SAC from the policy without ensembles",
}


class Arm(NamedTuple):
    """The runs of one way to start SAC, all on the same tasks and evaluated at the same steps."""

    name: str
    seeds: list[int]
    tasks: list[int]
    step: np.ndarray
    """Environment steps per task `[points]`; the first point is the policy before any RL."""
    returns: np.ndarray
    """Undiscounted returns `[seeds, tasks, points]`."""
    initial_steps: int
    """Steps of the multi-task policy before; 0 from scratch."""
    warmup_steps: int
    """Further steps before the first update."""
    policy_return: np.ndarray | None
    """Return of the multi-task policy itself in its last episode `[seeds, tasks]`."""


class Level(NamedTuple):
    """Plain SAC's mean return before learning and at its end, and the level between them; NaN if it did not improve."""

    before: float
    final: float
    value: float


class Speed(NamedTuple):
    """Steps that a warm and a cold arm take to plain SAC's level, and their ratio with its bootstrap interval.

    Steps are infinite where the level is not reached. The ratio is infinite where only the cold arm reaches it, 0
    where only the warm arm does, NaN where neither does or plain SAC did not improve.
    """

    warm: str
    cold: str
    warm_steps: float
    cold_steps: float
    ratio: Estimate
    """Over the resamples that have a ratio."""
    warm_missed: float
    """Share of the resamples in which the warm arm does not reach the level."""
    cold_missed: float
    not_improved: float
    """Share of the resamples in which plain SAC does not improve, so that there is no level."""
    task_ratio: float
    """Median over tasks of the ratio on a task, each with plain SAC's level on that task."""
    tasks_reached: int
    """Tasks on which plain SAC improved and the warm arm reached the level."""
    tasks_improved: int


class Results(NamedTuple):
    """All numbers of the report; by the name of the arm where they belong to one."""

    arms: dict[str, Arm]
    level: Level
    speeds: list[Speed]
    span: tuple[float, float]
    """First and last step that all arms have in common; NaN where there is none."""
    area: dict[str, Estimate]
    """Mean return over the span."""
    final: dict[str, Estimate]
    """Interquartile mean of the returns at each run's end."""


def arm_name(name: str) -> str:
    """An arm's name as it is written for people."""
    return _NAMES.get(name) or f"SAC from the policy {method_name(name.removeprefix('warm_'))}"


def policy_name(name: str) -> str:
    """The multi-task policy that a warm arm starts from, as it is written for people."""
    return "multi-task policy" if name == WARM else arm_name(name).removeprefix("SAC from the ")


def is_warm(name: str) -> bool:
    """Whether the arm starts from a multi-task policy."""
    return name.startswith("warm_")


def arms(summary: dict) -> dict[str, Arm]:
    """The arms of a summary: from scratch first, then the warm ones in their order.

    Raises MissingData where there is none; SummaryError where runs of an arm do not agree or tasks are not the same.
    """
    runs = plain(summary).get("warmstart") or []
    if not runs:
        raise MissingData("No run of the warm-start experiment was recorded.")
    names = dict.fromkeys([PLAIN, TWO_BATCHES, WARM, *(run["arm"] for run in runs)])
    found = {}
    for name in names:
        if mine := [run for run in runs if run["arm"] == name]:
            if name not in (PLAIN, TWO_BATCHES) and not is_warm(name):
                raise SummaryError(f"an arm is sac, sac_two_batches or warm_<method>; got {name!r}")
            found[name] = _arm(name, mine)
    if len({tuple(arm.tasks) for arm in found.values()}) > 1:
        raise SummaryError("the arms are compared on the same tasks, but theirs differ")
    return found


def training_arm(summary: dict, like: Arm | None) -> Arm:
    """The SAC runs that collected the training tasks' batches, as an arm of one seed (C16).

    Their warm-up is not in the curves; it is taken to be that of `like`.

    Raises MissingData where there are none; SummaryError where they do not agree.
    """
    curves = plain(summary).get("training_curves") or []
    if not curves:
        raise MissingData("No learning curves of SAC on the training tasks were recorded.")
    return _arm(TRAINING, [{"seed": 0, "curves": curves, "warmup_steps": like.warmup_steps if like else 0}])


def _arm(name: str, runs: list[dict]) -> Arm:
    runs = sorted(runs, key=lambda run: run["seed"])
    curves = [sorted(run["curves"], key=lambda curve: curve["task"]) for run in runs]
    grids = {tuple(curve["step"]) for row in curves for curve in row}
    tasks = {tuple(curve["task"] for curve in row) for row in curves}
    steps = {(run.get("initial_steps") or 0, run.get("warmup_steps") or 0) for run in runs}
    if any(len(kind) != 1 for kind in (grids, tasks, steps)) or len({run["seed"] for run in runs}) < len(runs):
        raise SummaryError(f"the runs of arm {name} need the same tasks and steps, and seeds that differ")
    step, returns = numbers(next(iter(grids))), numbers([[curve["return"] for curve in row] for row in curves])
    if not step.size or not (np.diff(step) > 0).all() or returns.shape[2:] != step.shape:
        raise SummaryError(f"arm {name}: a curve needs ascending steps and a return at each")
    if not np.isfinite(returns).all():
        raise SummaryError(f"arm {name}: a return is missing or not finite")
    policy = None
    if all(run.get("policy_return") for run in runs):
        policy = numbers([run["policy_return"] for run in runs])
        if policy.shape != returns.shape[:2]:
            raise SummaryError(f"arm {name}: policy_return needs one number per task")
    return Arm(name, [run["seed"] for run in runs], list(next(iter(tasks))), step, returns, *next(iter(steps)), policy)


def level(before: Any, final: Any) -> Any:
    """Returns at SHARE of the way from `before` to `final`, elementwise; NaN where `final` is not above `before`."""
    before, final = np.asarray(before, float), np.asarray(final, float)
    return np.where(final > before, before + SHARE * (final - before), math.nan)


def crossing(step: np.ndarray, curve: np.ndarray, goal: Any) -> np.ndarray:
    """First step at which curves `[..., points]` are at or above their goal `[...]`, at least 1.

    Linear between points. Infinity where a curve never gets there, NaN where the goal is NaN.
    """
    goal = np.asarray(goal, float)
    above = curve >= goal[..., None]
    after = above.argmax(axis=-1)
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(curve, place[..., None], -1)[..., 0] for place in (before, after))
    share = np.divide(goal - low, high - low, out=np.ones_like(goal), where=high > low)
    found = np.where(after > 0, step[before] + share * (step[after] - step[before]), step[0])
    return np.where(np.isnan(goal), math.nan, np.where(above.any(-1), np.maximum(found, 1), math.inf))


class Draws(NamedTuple):
    """How often tasks and seeds are drawn in each resample, as shares that add up to one."""

    tasks: np.ndarray
    """`[resamples, tasks]`, the same for all arms."""
    seeds: dict[str, np.ndarray]
    """`[resamples, seeds]` of each arm."""


def draws(found: dict[str, Arm], seed: int = 0, resamples: int = RESAMPLES) -> Draws:
    """Resample the tasks, paired over the arms, and each arm's seeds.

    A seed is drawn with all its tasks: one multi-task policy serves them all, so they are not independent.
    """
    make = np.random.default_rng(seed)

    def shares(count: int) -> np.ndarray:
        return make.multinomial(count, np.full(count, 1 / count), resamples) / count

    tasks = shares(len(next(iter(found.values())).tasks))
    return Draws(tasks, {name: shares(len(arm.seeds)) for name, arm in found.items()})


def resampled_curves(arm: Arm, drawn: Draws) -> np.ndarray:
    """Mean over tasks and seeds in each resample, `[resamples, points]`."""
    return np.einsum("rs,rt,stp->rp", drawn.seeds[arm.name], drawn.tasks, arm.returns, optimize=True)


def resampled_over(*compared: Arm) -> str:
    """What there is to resample: "tasks", "seeds", "tasks and seeds" or "nothing"."""
    kinds = {"tasks": len(compared[0].tasks) > 1, "seeds": any(len(arm.seeds) > 1 for arm in compared)}
    return " and ".join(kind for kind, several in kinds.items() if several) or "nothing"


def speed(warm: Arm, cold: Arm, scratch: Arm, drawn: Draws) -> Speed:
    """Steps to the level of plain SAC, `scratch`, of a warm arm against a cold one (which may be `scratch`)."""

    def steps(arm: Arm, curves: dict[str, np.ndarray]) -> np.ndarray:
        plain_curve = curves[scratch.name]
        return crossing(arm.step, curves[arm.name], level(plain_curve[..., 0], plain_curve[..., -1]))

    own = (warm, cold, scratch)
    of_tasks = {arm.name: arm.returns.mean(axis=0) for arm in own}
    of_means = {arm.name: arm.returns.mean(axis=(0, 1)) for arm in own}
    of_draws = {arm.name: resampled_curves(arm, drawn) for arm in own}
    with np.errstate(invalid="ignore"):  # neither reaches: infinity over infinity
        ratio, task_ratios, ratios = (steps(warm, of) / steps(cold, of) for of in (of_means, of_tasks, of_draws))
    known, known_tasks = ratios[~np.isnan(ratios)], task_ratios[~np.isnan(task_ratios)]
    # No interpolation between resamples: some ratios may be infinite.
    low, high = np.percentile(known, PERCENTILES, method="inverted_cdf") if known.size else (math.nan, math.nan)
    task_steps = steps(warm, of_tasks)
    return Speed(
        warm.name,
        cold.name,
        float(steps(warm, of_means)),
        float(steps(cold, of_means)),
        Estimate(float(ratio), float(low), float(high), resampled_over(*own)),
        float(np.isposinf(steps(warm, of_draws)).mean()),
        float(np.isposinf(steps(cold, of_draws)).mean()),
        float(np.isnan(steps(cold, of_draws)).mean()),
        float(np.median(known_tasks)) if known_tasks.size else math.nan,
        int(np.isfinite(task_steps).sum()),
        int((~np.isnan(task_steps)).sum()),
    )


def area(arm: Arm, span: tuple[float, float], drawn: Draws) -> Estimate:
    """Mean return over a span of steps (trapezoids between points), with its bootstrap interval; NaN without a span."""
    low, high = span
    if not low < high:
        return Estimate(math.nan, math.nan, math.nan, resampled_over(arm))
    grid = np.unique([low, *arm.step[(arm.step > low) & (arm.step < high)], high])
    curves = np.apply_along_axis(lambda curve: np.interp(grid, arm.step, curve), -1, arm.returns)
    runs = np.trapezoid(curves, grid, axis=-1) / (high - low)  # [seeds, tasks]
    means = np.einsum("rs,rt,st->r", drawn.seeds[arm.name], drawn.tasks, runs, optimize=True)
    ends = np.percentile(means, PERCENTILES)
    return Estimate(float(runs.mean()), float(ends[0]), float(ends[1]), resampled_over(arm))


def results(summary: dict) -> Results:
    """All numbers of the report; a ratio for every warm arm against every cold one.

    Raises MissingData where no run was recorded, SummaryError where the runs do not agree.
    """
    found = arms(summary)
    drawn = draws(found)
    warm, cold = ([arm for name, arm in found.items() if is_warm(name) == kind] for kind in (True, False))
    own, speeds = Level(math.nan, math.nan, math.nan), []
    if PLAIN in found:
        before, final = (float(found[PLAIN].returns[..., point].mean()) for point in (0, -1))
        own = Level(before, final, float(level(before, final)))
        speeds = [speed(one, other, found[PLAIN], drawn) for one in warm for other in cold]
    span = (max(arm.step[0] for arm in found.values()), min(arm.step[-1] for arm in found.values()))
    if not span[0] < span[1]:
        span = (math.nan, math.nan)
    areas = {name: area(arm, span, drawn) for name, arm in found.items()}
    finals = {name: pooled_iqm(arm.returns[..., -1]) for name, arm in found.items()}
    return Results(found, own, speeds, span, areas, finals)


def headline(summary: dict) -> dict:
    """The numbers of `results` as JSON types: None where one is not known or infinite, beside a "reached".

    Raises MissingData where no run was recorded, SummaryError where the runs do not agree.
    """
    return as_json(results(summary))


def as_json(found: Results) -> dict:
    """The numbers as `headline` gives them."""
    speeds = [
        {
            **one._asdict(),
            "ratio": one.ratio._asdict(),
            "ratio_bounded": math.isfinite(one.ratio.high),
            "warm_reached": math.isfinite(one.warm_steps),
            "cold_reached": math.isfinite(one.cold_steps),
            "warm_run": int(found.arms[one.warm].step[-1]),
            "cold_run": int(found.arms[one.cold].step[-1]),
            "resamples": RESAMPLES,
        }
        for one in found.speeds
    ]
    by_arm = {
        name: {
            "before": arm.returns[..., 0].mean(),
            "final_iqm": found.final[name]._asdict(),
            "area": found.area[name]._asdict(),
        }
        for name, arm in found.arms.items()
    }
    level_of = {**found.level._asdict(), "share": SHARE, "improved": math.isfinite(found.level.value)}
    return plain({"level": level_of, "speeds": speeds, "area_span": found.span, "arms": by_arm})
