"""Means with bootstrap intervals. Pure functions of numbers, seeded, so that the same answers give the same report."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError

RESAMPLES = 10_000
LEVEL = 0.95
_BLOCK = 4_000_000
"""Most values drawn at once: bounds the memory of a bootstrap over many rows."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its interval.

    Attributes:
        n: values behind the mean.
        mean: their mean.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    n: int
    mean: float
    low: float
    high: float


def bootstrap_mean(
    values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> Interval:
    """Mean of ``values`` with its percentile bootstrap interval (Efron and Tibshirani 1993, Sec. 13.3).

    ``resamples`` times, as many values as there are are drawn with replacement and averaged; the interval spans the
    central ``level`` of those means. For a paired comparison pass the differences of the pairs.

    Args:
        values: at least one finite number.
        seed: of numpy's PCG64.
        resamples: at least 1000.
        level: share of the means inside the interval, between 0 and 1.

    Raises:
        UserError: there are no values, too few resamples or the level is not between 0 and 1.
    """
    if not len(values):
        raise UserError("a mean of no values was asked for; give at least one")
    if resamples < 1000:
        raise UserError(f"resamples is {resamples}; a percentile interval needs at least 1000")
    if not 0 < level < 1:
        raise UserError(f"level is {level}; it must lie between 0 and 1, e.g. 0.95")
    sample = np.asarray(values, dtype=np.float64)
    means = _resampled_means(sample, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(n=len(sample), mean=float(sample.mean()), low=float(low), high=float(high))


def moving_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean over the ``width`` values centred on each value; near the ends, over those of them that exist.

    Args:
        values: a series.
        width: odd number of values, at least 1.
    """
    if width < 1 or width % 2 == 0:
        raise UserError(f"width is {width}; it must be an odd number of at least 1")
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    index = np.arange(len(values))
    first, end = np.maximum(index - width // 2, 0), np.minimum(index + width // 2 + 1, len(values))
    means: list[float] = ((sums[end] - sums[first]) / (end - first)).tolist()
    return means


def _resampled_means(
    sample: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    rows = max(1, _BLOCK // len(sample))
    parts = [
        sample[generator.integers(0, len(sample), size=(min(rows, resamples - done), len(sample)))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    return np.concatenate(parts)
