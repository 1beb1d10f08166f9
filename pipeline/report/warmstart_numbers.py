"""How much experience a warm start saves, in numbers: arms, steps to a level, bootstrap intervals.

The arms are SAC from scratch ("sac", and "sac_two_batches" with the warm start's two mini-batches) and SAC from a
multi-task policy ("warm_<method>"). Steps are environment steps per task, every one counted.
"""

import math
from typing import NamedTuple

import numpy as np

from pipeline.report.statistics import PERCENTILES, RESAMPLES, Estimate, shares
from pipeline.report.wording import method_name
from pipeline.results import Results, ResultsError, cube

SHARE = 0.9
"""The level lies at this share of the way from plain SAC's first to its last mean return."""
PERCENT = f"{100 * SHARE:.0f} %"
PLAIN, TWO_BATCHES, WARM, TRAINING = "sac", "sac_two_batches", "warm_full", "sac_training"
_NAMES = {
    PLAIN: "SAC from scratch",
    TWO_BATCHES: "SAC from scratch, two batches",
    TRAINING: "SAC from scratch, training tasks",
    WARM: "SAC from the policy",
    "warm_no_ensemble": "SAC from the policy without ensembles",
}


def arm_title(name: str) -> str:
    """An arm's name as it is written for people."""
    return _NAMES.get(name) or f"SAC from the policy {method_name(name.removeprefix('warm_'))}"


class Arm(NamedTuple):
    """The runs of one way to start SAC, all on the same tasks and evaluated at the same steps."""

    name: str
    step: np.ndarray
    """Environment steps per task `[points]`; the first point is the policy before any RL."""
    returns: np.ndarray
    """Undiscounted returns `[seeds, tasks, points]`."""
    initial_steps: int = 0
    """Steps of the multi-task policy before; 0 from scratch."""
    warmup_steps: int = 0
    """Further steps before the first update."""
    policy_return: float = math.nan
    """Mean return of the multi-task policy itself in its last episode."""

    @property
    def title(self) -> str:
        """Its name as it is written for people."""
        return arm_title(self.name)

    @property
    def mean(self) -> np.ndarray:
        """Mean over seeds and tasks `[points]`."""
        return self.returns.mean(axis=(0, 1))


def arms(results: Results) -> dict[str, Arm]:
    """The arms: from scratch first, then the warm ones in their order; a run that lacks points is an error."""
    rows = results.rows("return", split="test")
    if rows.empty:
        raise ResultsError("No run of the warm-start experiment was recorded.")
    found = {}
    for name in dict.fromkeys([PLAIN, TWO_BATCHES, WARM, *rows["method"]]):
        mine = rows[rows["method"] == name]
        if len(mine):
            (_, _, step), returns = cube(mine, "seed", "task", "step", task=results.tasks("test"))
            if not np.isfinite(returns).all():
                raise ResultsError(f"The runs of arm {name} need the same tasks and steps.")
            policy = float(results.rows("policy_return", method=name)["value"].mean())
            found[name] = Arm(name, step, returns, **results.run["arms"][name], policy_return=policy)
    return found


def training_arm(results: Results, warmup_steps: int) -> Arm | None:
    """The SAC runs that collected the training tasks' batches, as the paper compares with; their warm-up is not in the
    curves, so it is given."""
    rows = results.rows("return", method="sac", split="train")
    if rows.empty:
        return None
    (_, step), returns = cube(rows, "task", "step")
    return Arm(TRAINING, step, returns[None], warmup_steps=warmup_steps)


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


class Draws:
    """Mean curves `[resamples, points]` of arms: the tasks of a resample are the same for all, its seeds an arm's "
    "own."""

    def __init__(self, found: dict[str, Arm], seed: int = 0, resamples: int = RESAMPLES) -> None:
        """Draw whole seeds: a seed comes with all its tasks, which one multi-task policy serves."""
        make = np.random.default_rng(seed)
        self.tasks = shares(next(iter(found.values())).returns.shape[1], make, resamples)
        self.seeds = {name: shares(len(arm.returns), make, resamples) for name, arm in found.items()}

    def curves(self, arm: Arm, returns: np.ndarray | None = None) -> np.ndarray:
        """Of an arm's returns `[seeds, tasks, points]`, or of others of its runs."""
        values = arm.returns if returns is None else returns
        return np.einsum("rs,rt,stp->rp", self.seeds[arm.name], self.tasks, values, optimize=True)


class Speed(NamedTuple):
    """Steps that a warm and a cold arm take to plain SAC's level, first or to stay, and their ratio.

    Steps are infinite where the level is not reached. The ratio is infinite where only the cold arm reaches it, 0
    where only the warm arm does, NaN where neither does or plain SAC did not improve.
    """

    warm_steps: float
    cold_steps: float
    ratio: Estimate
    """Its interval is over the resamples that have a ratio."""
    warm_missed: float
    """Share of the resamples in which the warm arm does not reach the level."""
    task_ratio: float
    """Median over tasks of the ratio on a task, each with plain SAC's level on that task."""
    tasks: tuple[int, int]
    """Tasks on which the warm arm reached the level, of those on which plain SAC improved."""


def speed(warm: Arm, cold: Arm, plain: Arm, drawn: Draws, stay: bool) -> Speed:
    """How fast a warm arm is at the level of `plain`, relative to a cold one (which may be `plain`)."""
    steps = {}
    for arm in (warm, cold):
        of = {"mean": lambda a: a.mean, "task": lambda a: a.returns.mean(axis=0), "draw": drawn.curves}
        steps[arm.name] = {name: crossing(arm.step, f(arm), level(f(plain)), stay) for name, f in of.items()}
    mine, other = steps[warm.name], steps[cold.name]
    with np.errstate(invalid="ignore"):  # neither reaches: infinity over infinity
        ratio, of_tasks, of_draws = (mine[name] / other[name] for name in ("mean", "task", "draw"))
    known, known_tasks = of_draws[~np.isnan(of_draws)], of_tasks[~np.isnan(of_tasks)]
    # No interpolation between resamples: some ratios may be infinite.
    low, high = np.percentile(known, PERCENTILES, method="inverted_cdf") if known.size else (math.nan, math.nan)
    return Speed(
        float(mine["mean"]),
        float(other["mean"]),
        Estimate(float(ratio), float(low), float(high)),
        float(np.isinf(mine["draw"]).mean()),
        float(np.median(known_tasks)) if known_tasks.size else math.nan,
        (int(np.isfinite(mine["task"]).sum()), int((~np.isnan(mine["task"])).sum())),
    )
