"""Interval maths of profiles against brute force over unit cells."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.training.profiling.intervals import NONE, common, covers, length, merged, partition, spans, without

CELLS = 30
SPANS = st.lists(st.tuples(st.integers(0, CELLS), st.integers(0, CELLS)), max_size=8).map(spans)


def cells(given_spans: np.ndarray) -> set[int]:
    return {cell for start, end in given_spans for cell in range(int(start), int(end))}


@given(SPANS)
def test_merged_spans_cover_the_same_cells_once(some: np.ndarray) -> None:
    disjoint = merged(some)
    assert cells(disjoint) == cells(some)
    assert length(some) == len(cells(some))
    assert (disjoint[:, 1] > disjoint[:, 0]).all()
    assert (disjoint[1:, 0] > disjoint[:-1, 1]).all(), "rising, none touching the next"


@given(SPANS, SPANS)
def test_common_cells_difference_and_cover(left: np.ndarray, right: np.ndarray) -> None:
    assert cells(common(left, right)) == cells(left) & cells(right)
    assert cells(without(left, right)) == cells(left) - cells(right)
    middles = np.arange(CELLS) + 0.5
    assert set(np.flatnonzero(covers(left, middles))) == cells(left)
    assert set(np.flatnonzero(covers(left, np.arange(CELLS, dtype=float)))) == cells(left), "half open"


@given(st.integers(0, CELLS), st.integers(1, CELLS), st.lists(st.tuples(st.sampled_from("abc"), SPANS), max_size=5))
def test_a_partition_gives_every_cell_to_the_first_layer_that_covers_it(
    start: int, size: int, layers: list[tuple[str, np.ndarray]]
) -> None:
    expected = dict.fromkeys([name for name, _ in layers], 0) | {"rest": 0}
    for cell in range(start, start + size):
        owner = next((name for name, layer in layers if cell in cells(layer)), "rest")
        expected[owner] += 1
    shares = partition((start, start + size), layers, "rest")
    assert shares == expected
    assert sum(shares.values()) == size


def test_fractions_and_nothing() -> None:
    assert length(NONE) == 0 and merged(NONE).shape == (0, 2) and not covers(NONE, np.array([0.5])).any()
    shares = partition((0.0, 1.0), [("a", spans([(-1.0, 0.25), (0.2, 0.3)]))], "rest")
    assert shares == {"a": pytest.approx(0.3), "rest": pytest.approx(0.7)}
