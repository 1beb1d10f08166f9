"""Summary statistics over tasks and seeds: interquartile mean, probability of improvement, bootstrap intervals."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

TRIM = 0.25
RESAMPLES = 9999
PERCENTILES = (2.5, 97.5)


class StatisticsError(ValueError):
    """The scores cannot be summarised."""


def _scores(values: ArrayLike) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0 or not np.isfinite(scores).all():
        raise StatisticsError(f"scores must be a non-empty list of finite numbers, one per task; got {values!r:.200}")
    return scores


def _trimmed(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return stats.trim_mean(values, TRIM, axis=axis)


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: the mean after a quarter of the `[tasks]` scores is dropped at either end.

    The number dropped is rounded down, so with fewer than four tasks it is the plain mean.

    Raises StatisticsError when a score is missing or not finite.
    """
    return float(_trimmed(_scores(values)))


def interval(values: ArrayLike, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval `(low, high)` of the interquartile mean, resampling the `[tasks]` scores.

    The generator is seeded here, so the same scores always give the same interval. One task, or tasks that
    all have the same score, give an interval of width zero: it says nothing about other tasks.

    Raises StatisticsError when a score is missing or not finite.
    """
    scores = _scores(values)
    if np.ptp(scores) == 0:
        return float(scores[0]), float(scores[0])
    found = stats.bootstrap(
        (scores,),
        _trimmed,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def summarise(values: ArrayLike) -> dict[str, float]:
    """The numbers of one headline row from `[tasks]` scores: mean, iqm, low, high, std_over_tasks.

    The standard deviation has divisor n, as in the paper's shaded areas (paper, plotting code).

    Raises StatisticsError when a score is missing or not finite.
    """
    scores = _scores(values)
    low, high = interval(scores)
    return {
        "mean": float(scores.mean()),
        "iqm": iqm(scores),
        "low": low,
        "high": high,
        "std_over_tasks": float(scores.std()),
    }


class Estimate(NamedTuple):
    """A number with its 95 % bootstrap interval, and what was resampled: "seeds" within each task, or "tasks"."""

    value: float
    low: float
    high: float
    over: str


class Spread(NamedTuple):
    """Standard deviation over tasks of the mean over seeds, and over seeds of the mean over tasks."""

    tasks: float
    seeds: float


def _table(values: ArrayLike) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0 or not np.isfinite(scores).all():
        raise StatisticsError(f"scores must be finite numbers, one per seed and task; got {values!r:.200}")
    return scores


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(drawn, PERCENTILES)
    return float(low), float(high)


def pooled_iqm(values: ArrayLike, seed: int = 0) -> Estimate:
    """Interquartile mean over all runs `[seeds, tasks]`, with its stratified bootstrap interval.

    Tasks are the strata: the seeds are resampled within each task, independently of the other tasks (Agarwal et
    al., "Deep RL at the edge of the statistical precipice", 2021), so the interval is about these tasks. One seed
    leaves nothing to resample there; then the tasks are resampled, as in `interval`.

    Raises StatisticsError when a score is missing or not finite.
    """
    scores = _table(values)
    seeds, tasks = scores.shape
    if seeds == 1:
        return Estimate(iqm(scores[0]), *interval(scores[0], seed=seed), "tasks")
    index = np.random.default_rng(seed).integers(0, seeds, (RESAMPLES, seeds, tasks))
    drawn = scores[index, np.arange(tasks)].reshape(RESAMPLES, -1)
    return Estimate(float(_trimmed(scores.ravel())), *_percentiles(_trimmed(drawn)), "seeds")


def improvement(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Estimate:
    """Probability that a run of `first` `[seeds, tasks]` scores above one of `second` on the same task.

    The share of pairs of seeds that `first` wins, ties counting half (Mann-Whitney U over the number of pairs), is
    averaged over tasks; the interval is that of `pooled_iqm`, with both methods resampled. Where either has one seed,
    the tasks are resampled.

    Raises StatisticsError when a score is missing or not finite, or the tasks do not agree.
    """
    one, other = _table(first), _table(second)
    if one.shape[1] != other.shape[1]:
        raise StatisticsError(f"methods are compared on the same tasks; got {one.shape[1]} and {other.shape[1]} tasks")
    wins = (np.sign(one.T[:, :, None] - other.T[:, None, :]) + 1) / 2  # [tasks, seeds, other seeds]
    make, tasks = np.random.default_rng(seed), len(wins)
    if min(len(one), len(other)) == 1:
        index = make.integers(0, tasks, (RESAMPLES, tasks))
        return Estimate(float(wins.mean()), *_percentiles(wins.mean((1, 2))[index].mean(1)), "tasks")
    # How often each seed is drawn says all about a resample: [resamples, tasks, seeds], shares that add up to one.
    left, right = (
        make.multinomial(count, np.full(count, 1 / count), (RESAMPLES, tasks)) / count
        for count in (len(one), len(other))
    )
    drawn = np.einsum("rts,tso,rto->r", left, wins, right, optimize=True) / tasks
    return Estimate(float(wins.mean()), *_percentiles(drawn), "seeds")


def spread(values: ArrayLike) -> Spread:
    """How much `[seeds, tasks]` scores vary from task to task and, kept apart, from seed to seed.

    Divisor n for the tasks, as in the paper's shaded areas; n - 1 for the seeds, which are a sample (NaN for one).

    Raises StatisticsError when a score is missing or not finite.
    """
    scores = _table(values)
    over_seeds = float(scores.mean(1).std(ddof=1)) if len(scores) > 1 else math.nan
    return Spread(float(scores.mean(0).std()), over_seeds)


def best_epoch(scores: np.ndarray) -> int:
    """Position of the step with the highest mean of `[seeds, steps, tasks]`, the earliest of equals.

    Chosen on the very tasks that are scored there, so the score at this step is optimistic.
    """
    return int(np.argmax(scores.mean(axis=(0, 2))))


def seed_interval(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Low and high `[points]` around the mean over seeds of `[seeds, points]`.

    A 95 % bootstrap interval over the seeds where there are three or more, otherwise the lowest and highest seed.
    """
    seeds = len(values)
    if seeds < 3:
        return values.min(axis=0), values.max(axis=0)
    index = np.random.default_rng(seed).integers(0, seeds, (RESAMPLES, seeds))
    low, high = np.percentile(values[index].mean(axis=1), PERCENTILES, axis=0)
    return low, high
