"""t-SNE (van der Maaten and Hinton, JMLR 9, 2008), exact: for some hundred points, where no tree is needed.

``n`` points of ``d`` numbers. The schedule is the usual one: principal components to start with (Kobak and Berens,
Nature Communications 10, 2019), exaggerated affinities at first, momentum and gains.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PERPLEXITY = 30.0
STEPS = 750
EXAGGERATED_STEPS = 250
EXAGGERATION = 12.0
START_SPREAD = 1e-4
"""Standard deviation of the first principal component at the start."""

_LEAST = 1e-12
_HALVINGS = 64


def principal_components(points: Array, count: int = 2) -> Array:
    """``(n, count)`` float64: the points on their first principal components.

    The sign of a component is that of its largest entry, so that the same points give the same picture.
    """
    centred = points - points.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    kept = directions[:count]
    largest = np.take_along_axis(kept, np.abs(kept).argmax(axis=1)[:, None], axis=1)
    return np.asarray(centred @ (kept * np.sign(largest)).T)


def tsne(points: Array, *, perplexity: float = PERPLEXITY, steps: int = STEPS) -> Array:
    """``(n, 2)`` float64: the map. The same points give the same map.

    Args:
        points: ``(n, d)``, more than three times the perplexity, not all the same.
        perplexity: neighbours that a point counts with, as an effective number.
        steps: of gradient descent.
    """
    wanted = affinities(points, perplexity)
    start = principal_components(points)
    placed = start / start[:, 0].std() * START_SPREAD
    rate = max(len(points) / EXAGGERATION / 4, 50.0)
    speed, gains = np.zeros_like(placed), np.ones_like(placed)
    for step in range(steps):
        early = step < EXAGGERATED_STEPS
        slope = gradient(wanted * (EXAGGERATION if early else 1.0), placed)
        gains = np.maximum(np.where(np.sign(slope) != np.sign(speed), gains + 0.2, gains * 0.8), 0.01)
        speed = (0.5 if early else 0.8) * speed - rate * gains * slope
        placed = placed + speed
    return placed - placed.mean(axis=0)


def affinities(points: Array, perplexity: float) -> Array:
    """``(n, n)`` float64, symmetric, sum 1: Gaussian neighbours of that perplexity, averaged both ways (Sec. 3.1)."""
    distances = squared_distances(points)
    conditional = np.stack([_neighbours(row, index, perplexity) for index, row in enumerate(distances)])
    return (conditional + conditional.T) / (2 * len(points))


def divergence(wanted: Array, placed: Array) -> float:
    """Kullback-Leibler divergence of the map's affinities from the points' (Eq. 2 with Eq. 4)."""
    kernel = _kernel(placed)
    made = np.maximum(kernel / kernel.sum(), _LEAST)
    return float((wanted * np.log(np.maximum(wanted, _LEAST) / made)).sum())


def gradient(wanted: Array, placed: Array) -> Array:
    """``(n, 2)``: of the divergence by the map (Eq. 5)."""
    kernel = _kernel(placed)
    pulls = (wanted - kernel / kernel.sum()) * kernel
    return 4 * (pulls.sum(axis=1)[:, None] * placed - pulls @ placed)


def squared_distances(points: Array) -> Array:
    """``(n, n)`` float64."""
    norms = (points**2).sum(axis=1)
    return np.maximum(norms[:, None] + norms[None] - 2 * points @ points.T, 0.0)


def _kernel(placed: Array) -> Array:
    """Student's t with one degree of freedom, without the diagonal (Eq. 4)."""
    kernel = 1.0 / (1.0 + squared_distances(placed))
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _neighbours(distances: Array, own: int, perplexity: float) -> Array:
    """``(n,)``, sum 1: one row of the conditional affinities, its precision found by halving."""
    others = np.delete(distances, own)
    others = others - others.min()
    low, high, precision = 0.0, np.inf, 1.0 / max(others.mean(), _LEAST)
    for _ in range(_HALVINGS):
        weights = np.exp(-others * precision)
        shares = weights / weights.sum()
        if -(shares * np.log(np.maximum(shares, _LEAST))).sum() > np.log(perplexity):
            low, precision = precision, 2 * precision if high == np.inf else (precision + high) / 2
        else:
            high, precision = precision, (low + precision) / 2
    return np.insert(shares, own, 0.0)
