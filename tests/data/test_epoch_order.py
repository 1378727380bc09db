"""Which rows an epoch visits on which rank: pure index maths."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.data.loader import EpochOrder


def order(sizes: tuple[int, ...] = (10,), **changes: object) -> EpochOrder:
    options: dict[str, object] = {
        "weights": (1.0,) * len(sizes),
        "seed": 3,
        "shuffle": True,
        "batch_size": 2,
        **changes,
    }
    return EpochOrder(source_sizes=sizes, **options)  # type: ignore[arg-type]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_ranks_partition_every_epoch(
    sizes: list[int], batch_size: int, world_size: int, even: bool, grouped: bool, epoch: int
) -> None:
    total = sum(sizes)
    lengths = [(7 * row) % 11 for row in range(total)] if grouped else None
    plan = order(tuple(sizes), batch_size=batch_size, world_size=world_size, even_ranks=even, lengths=lengths)
    ranks = [plan.rows(epoch, rank) for rank in range(world_size)]
    assert [len(rows) for rows in ranks] == [plan.rank_size(rank) for rank in range(world_size)]
    visited = [row for rows in ranks for row in rows]
    assert len(set(visited)) == len(visited) and set(visited) <= set(range(total))
    if even:
        assert len({len(rows) for rows in ranks}) == 1
        assert total - len(visited) < world_size
    else:
        assert len(visited) == total


def test_order_depends_on_seed_and_epoch_only() -> None:
    assert order().rows(1, 0) == order().rows(1, 0)
    assert order().rows(1, 0) != order().rows(2, 0)
    assert order().rows(1, 0) != order(seed=4).rows(1, 0)
    assert order(shuffle=False, even_ranks=False).rows(5, 0) == list(range(10))


def test_weights_repeat_and_thin_manifests() -> None:
    plan = order((4, 10), weights=(2.5, 0.3))
    visits = Counter(plan.rows(0, 0))
    assert sum(visits.values()) == plan.epoch_size == 13
    assert sorted(visits[row] for row in range(4)) == [2, 2, 3, 3]
    assert sum(visits[row] for row in range(4, 14)) == 3 and max(visits[row] for row in range(4, 14)) == 1
    thinned = [frozenset(row for row in plan.rows(epoch, 0) if row >= 4) for epoch in range(6)]
    assert len(set(thinned)) > 1, "another part of the manifest each epoch"


def test_grouping_makes_even_batches_and_keeps_the_rows() -> None:
    lengths = [100 if row % 2 else 1 for row in range(64)]
    plan = order((64,), batch_size=4, world_size=2, lengths=lengths)
    ranks = [plan.rows(0, rank) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == list(range(64))
    for start in range(0, 32, 4):
        assert len({lengths[row] for rows in ranks for row in rows[start : start + 4]}) == 1
    firsts = [lengths[ranks[0][start]] for start in range(0, 32, 4)]
    assert firsts != sorted(firsts), "whole batches are shuffled"


@pytest.mark.parametrize("world_size", [1, 3])
def test_rows_left_out_vary_by_epoch(world_size: int) -> None:
    plan = order((10,), world_size=world_size)
    left_out = [
        frozenset(range(10)) - {row for rank in range(world_size) for row in plan.rows(epoch, rank)}
        for epoch in range(8)
    ]
    assert all(len(rows) == 10 % world_size for rows in left_out)
    assert world_size == 1 or len(set(left_out)) > 1
