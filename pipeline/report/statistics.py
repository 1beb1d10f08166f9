"""Statistics over seeds and tasks: interquartile mean, differences, probability of improvement, bootstrap intervals.

One policy serves all tasks, so its scores `[seeds, tasks]` are not independent: a resample draws whole seeds, and
tasks, the same tasks for everything that is compared. All seeds share the data and the teachers, so no interval covers
other data.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 9999
PERCENTILES = (2.5, 97.5)


class Estimate(NamedTuple):
    """A number with its 95 % percentile bootstrap interval (of width zero where there is nothing to resample)."""

    value: float
    low: float
    high: float


def iqm(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Interquartile mean: a quarter of the values (rounded down) is dropped at either end."""
    return stats.trim_mean(values, 0.25, axis=axis)  # pyright: ignore[reportArgumentType]


def shares(count: int, generator: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each of `count` things is drawn in each resample, as shares that add up to one `[resamples, count]`."""
    return generator.multinomial(count, np.full(count, 1 / count), resamples) / count


def resampled(*scores: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> list[np.ndarray]:
    """Of each array `[seeds, points, tasks]` its means `[resamples, points]`: the tasks of a resample are the same for
    all arrays, its seeds an array's own."""
    make = np.random.default_rng(seed)
    tasks = shares(scores[0].shape[2], make, resamples)
    drawn = [(shares(len(values), make, resamples), values) for values in scores]
    return [np.einsum("rs,rt,spt->rp", seeds, tasks, values, optimize=True) for seeds, values in drawn]


def percentiles(drawn: np.ndarray, value: float) -> Estimate:
    """`value` with the interval of its resamples, which may be infinite; those that are not known are left out."""
    known = drawn[~np.isnan(drawn)]
    low, high = np.percentile(known, PERCENTILES, method="inverted_cdf") if known.size else (math.nan, math.nan)
    return Estimate(float(value), float(low), float(high))


def pooled_iqm(scores: np.ndarray, seed: int = 0) -> Estimate:
    """Interquartile mean over all of `[seeds, tasks]`; whole seeds and tasks are resampled."""
    if not np.isfinite(scores).all():
        return Estimate(math.nan, math.nan, math.nan)
    make, (seeds, tasks) = np.random.default_rng(seed), scores.shape
    rows, columns = (make.integers(0, count, (RESAMPLES, count)) for count in (seeds, tasks))
    drawn = scores[rows[:, :, None], columns[:, None, :]].reshape(RESAMPLES, -1)
    return percentiles(iqm(drawn, axis=1), float(iqm(scores)))


def _compared(first: np.ndarray, other: np.ndarray, pairs: Callable[..., np.ndarray], seed: int) -> Estimate:
    """Mean of `pairs` of runs of two methods on the same task; seeds of each and tasks are resampled."""
    values = pairs(first[:, None], other[None])  # [seeds, other seeds, tasks]
    make = np.random.default_rng(seed)
    left, right, tasks = (shares(count, make) for count in values.shape)
    return percentiles(np.einsum("ra,rb,rt,abt->r", left, right, tasks, values, optimize=True), values.mean())


def difference(first: np.ndarray, other: np.ndarray, seed: int = 0) -> Estimate:
    """Mean score of `first` `[seeds, tasks]` less that of `other` `[other seeds, tasks]`, paired over the tasks."""
    return _compared(first, other, np.subtract, seed)


def improvement(first: np.ndarray, other: np.ndarray, seed: int = 0) -> Estimate:
    """Probability that a run of `first` scores above one of `other` on the same task, ties counting half.

    Agarwal et al., "Deep RL at the edge of the statistical precipice", 2021.
    """
    return _compared(first, other, lambda one, two: (np.sign(one - two) + 1) / 2, seed)


def mean_interval(scores: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Low and high `[points]` of the mean of `[seeds, points, tasks]`; whole seeds and tasks are resampled."""
    low, high = np.percentile(resampled(scores, seed=seed)[0], PERCENTILES, axis=0)
    return low, high


def seed_interval(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Low and high `[points]` around the mean over seeds of `[seeds, points]`.

    A bootstrap interval from three seeds on, the lowest and highest of fewer.
    """
    if len(values) < 3:
        return values.min(axis=0), values.max(axis=0)
    return mean_interval(values[..., None], seed)


def best_epoch(scores: np.ndarray) -> int:
    """Position of the step with the highest mean of `[seeds, steps, tasks]`, the earliest of equals.

    Chosen on the very tasks that are scored there, so the score at this step is optimistic.
    """
    return int(np.argmax(scores.mean(axis=(0, 2))))


def nested(tasks: Sequence[np.ndarray], seed: int = 0) -> Estimate:
    """Mean over tasks of the mean over each one's blocks `[B]`; tasks are resampled, and blocks within each."""
    make = np.random.default_rng(seed)
    means = np.stack([shares(len(blocks), make) @ blocks for blocks in tasks], 1)
    drawn = (shares(len(tasks), make) * means).sum(1)
    return percentiles(drawn, float(np.mean([blocks.mean() for blocks in tasks])))
