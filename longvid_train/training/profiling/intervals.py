"""Sets of time intervals, half open: ``(n, 2)`` float64 arrays of starts and ends, in any order, overlapping or not."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Spans = NDArray[np.float64]
"""``(n, 2)`` starts and ends; a span whose end is not behind its start is empty."""

NONE: Spans = np.empty((0, 2))


def spans(pairs: Sequence[tuple[float, float]]) -> Spans:
    """``(n, 2)`` of pairs of start and end, also of none."""
    return np.asarray(pairs, np.float64).reshape(-1, 2)


def merged(given: Spans) -> Spans:
    """The same instants as disjoint spans in rising order, no two of which touch."""
    kept = given[given[:, 1] > given[:, 0]]
    if not len(kept):
        return NONE
    kept = kept[np.argsort(kept[:, 0], kind="stable")]
    reached = np.maximum.accumulate(kept[:, 1])
    first = np.concatenate([[True], kept[1:, 0] > reached[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([kept[first, 0], reached[last]], axis=1)


def length(given: Spans) -> float:
    """Length of the instants covered, each counted once."""
    disjoint = merged(given)
    return float((disjoint[:, 1] - disjoint[:, 0]).sum())


def covers(given: Spans, instants: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of ``instants``, ``(m,)``, lie in a span."""
    disjoint = merged(given)
    begun = np.searchsorted(disjoint[:, 0], instants, side="right")
    ended = np.searchsorted(disjoint[:, 1], instants, side="right")
    return begun > ended


def common(left: Spans, right: Spans) -> Spans:
    """The instants that both cover, as disjoint spans."""
    cuts = np.unique(np.concatenate([left.ravel(), right.ravel()]))
    starts = cuts[:-1]
    both = covers(left, starts) & covers(right, starts)
    return merged(np.stack([starts[both], cuts[1:][both]], axis=1))


def without(given: Spans, taken: Spans) -> Spans:
    """The instants that ``given`` covers and ``taken`` does not, as disjoint spans."""
    cuts = np.unique(np.concatenate([given.ravel(), taken.ravel()]))
    starts = cuts[:-1]
    left = covers(given, starts) & ~covers(taken, starts)
    return merged(np.stack([starts[left], cuts[1:][left]], axis=1))


def partition(window: tuple[float, float], layers: Sequence[tuple[str, Spans]], rest: str) -> dict[str, float]:
    """Divide a window among layers, the first of which takes what it covers, the next what is left of its own.

    Args:
        window: start and end.
        layers: name and spans, the first has precedence. A name may come several times.
        rest: who gets the instants that no layer covers.

    Returns:
        Length of each name's instants; together they are the window.
    """
    start, end = window
    cuts = np.concatenate([[start, end], *(layer.ravel() for _, layer in layers)])
    cuts = np.unique(np.clip(cuts, start, end))
    starts, lengths = cuts[:-1], np.diff(cuts)
    free = np.ones(len(starts), np.bool_)
    shares = dict.fromkeys([name for name, _ in layers], 0.0) | {rest: 0.0}
    for name, layer in layers:
        taken = covers(layer, starts) & free
        shares[name] += float(lengths[taken].sum())
        free &= ~taken
    shares[rest] += float(lengths[free].sum())
    return shares
