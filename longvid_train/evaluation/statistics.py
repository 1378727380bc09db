"""Means with bootstrap intervals. Pure functions of numbers, seeded, so that the same answers give the same report."""

from collections.abc import Hashable, Sequence
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
    _check(values, resamples, level)
    sample = np.asarray(values, dtype=np.float64)
    means = _resampled_means(sample, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(n=len(sample), mean=float(sample.mean()), low=float(low), high=float(high))


def bootstrap_clusters(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Mean of ``values`` with an interval that allows for values that belong together: questions about one video.

    Whole clusters are drawn with replacement, as many as there are, and all of their values averaged (the cluster
    bootstrap: Davison and Hinkley 1997, Sec. 3.8). With every value in a cluster of its own this is `bootstrap_mean`.

    Args:
        values: at least one finite number.
        clusters: what each value belongs to.
        seed: of numpy's PCG64.
        resamples: at least 1000.
        level: share of the means inside the interval, between 0 and 1.

    Raises:
        UserError: as `bootstrap_mean`.
    """
    _check(values, resamples, level)
    assert len(values) == len(clusters)
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    member = np.array([numbers[cluster] for cluster in clusters])
    sums = np.bincount(member, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(member)
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(sums))
    means = []
    for done in range(0, resamples, rows):
        drawn = generator.integers(0, len(sums), size=(min(rows, resamples - done), len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(n=len(values), mean=float(np.mean(values)), low=float(low), high=float(high))


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


def _check(values: Sequence[float], resamples: int, level: float) -> None:
    if not len(values):
        raise UserError("a mean of no values was asked for; give at least one")
    if resamples < 1000:
        raise UserError(f"resamples is {resamples}; a percentile interval needs at least 1000")
    if not 0 < level < 1:
        raise UserError(f"level is {level}; it must lie between 0 and 1, e.g. 0.95")


def _resampled_means(
    sample: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    rows = max(1, _BLOCK // len(sample))
    parts = [
        sample[generator.integers(0, len(sample), size=(min(rows, resamples - done), len(sample)))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    return np.concatenate(parts)
