"""Summary statistics over tasks: the interquartile mean and its bootstrap interval."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

TRIM = 0.25
RESAMPLES = 9999


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
