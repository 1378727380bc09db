"""Which rows form which batch of an epoch on which rank: pure index maths."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.data.order import IMAGE, TEXT, VIDEO, BatchOrder, RowFacts, RowOrder, Stratum
from longvid_train.data.token_order import TokenOrder, evenly_many, packed_batches, padded_batches


def rows_order(sizes: tuple[int, ...] = (10,), weights: tuple[float, ...] = (), **changes: Any) -> RowOrder:
    options: dict[str, Any] = {"seed": 3, "shuffle": True, "batch_size": 2, **changes}
    return RowOrder(strata=strata(sizes, weights), **options)


def strata(sizes: tuple[int, ...], weights: tuple[float, ...] = ()) -> tuple[Stratum, ...]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return tuple(
        Stratum(range(start, start + size), weight)
        for start, size, weight in zip(starts, sizes, weights or (1.0,) * len(sizes), strict=True)
    )


def some_facts(total: int) -> RowFacts:
    return RowFacts([7 * row % 11 + 1 for row in range(total)], [row * row % 3 for row in range(total)])


def tokens_order(
    sizes: tuple[int, ...] = (10,), weights: tuple[float, ...] = (), facts: RowFacts | None = None, **changes: Any
) -> TokenOrder:
    options: dict[str, Any] = {"seed": 3, "max_tokens": 20, "packed": False, "by_modality": False, **changes}
    return TokenOrder(strata=strata(sizes, weights), facts=facts or some_facts(sum(sizes)), **options)


def visited(order: BatchOrder, epoch: int) -> list[int]:
    ranks = range(order.world_size)
    return [row for rank in ranks for batch in order.batches(epoch, rank) for row in batch]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple),
    st.integers(1, 5),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=80, deadline=None)
def test_ranks_partition_every_epoch(
    sizes: tuple[int, ...], batch_size: int, world_size: int, even: bool, length: bool, modality: bool, epoch: int
) -> None:
    total = sum(sizes)
    order = rows_order(
        sizes,
        batch_size=batch_size,
        world_size=world_size,
        even_ranks=even,
        facts=some_facts(total) if length or modality else None,
        by_length=length,
        by_modality=modality,
    )
    ranks = [order.batches(epoch, rank) for rank in range(world_size)]
    assert [len(batches) for batches in ranks] == [order.batch_count(rank) for rank in range(world_size)]
    assert all(0 < len(batch) <= batch_size for batches in ranks for batch in batches)
    rows = visited(order, epoch)
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(total))
    if even:
        assert len({len(batches) for batches in ranks}) == 1
        rest = total % (batch_size * world_size)
        assert total - len(rows) == (rest if rest < world_size else 0), "left out only where ranks would stay empty"
    else:
        assert len(rows) == total
    steps = [
        sorted(row for batches in ranks if at < len(batches) for row in batches[at]) for at in range(len(ranks[0]))
    ]
    alone = rows_order(
        sizes,
        batch_size=batch_size * world_size,
        even_ranks=even,
        facts=order.facts,
        by_length=length,
        by_modality=modality,
    )
    assert steps == [sorted(batch) for batch in alone.batches(epoch, 0)][: len(steps)], "one rank sees the same steps"


def test_order_depends_on_seed_and_epoch_only() -> None:
    for order in (rows_order, tokens_order):
        assert order().batches(1, 0) == order().batches(1, 0)
        assert order().batches(1, 0) != order().batches(2, 0)
        assert order().batches(1, 0) != order(seed=4).batches(1, 0)
        assert order().record() == order().record() != order(seed=4).record()
    plain = rows_order(shuffle=False, even_ranks=False).batches(5, 0)
    assert plain == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_weights_repeat_and_thin_manifests() -> None:
    order = rows_order((4, 10), weights=(2.5, 0.3))
    visits = Counter(visited(order, 0))
    assert sum(visits.values()) == 13
    assert sorted(visits[row] for row in range(4)) == [2, 2, 3, 3]
    assert sum(visits[row] for row in range(4, 14)) == 3 and max(visits[row] for row in range(4, 14)) == 1
    thinned = [frozenset(row for row in visited(order, epoch) if row >= 4) for epoch in range(6)]
    assert len(set(thinned)) > 1, "another part of the manifest each epoch"


def test_grouping_makes_even_batches_and_keeps_the_rows() -> None:
    facts = RowFacts([100 if row % 2 else 1 for row in range(64)], [TEXT] * 64)
    order = rows_order((64,), batch_size=4, world_size=2, facts=facts, by_length=True)
    ranks = [order.batches(0, rank) for rank in range(2)]
    assert sorted(visited(order, 0)) == list(range(64))
    for left, right in zip(*ranks, strict=True):
        assert len({facts.lengths[row] for row in left + right}) == 1
    firsts = [facts.lengths[batch[0]] for batch in ranks[0]]
    assert firsts != sorted(firsts), "whole batches are shuffled"


def test_modalities_are_mixed_only_in_what_is_left_over() -> None:
    kinds = [TEXT] * 19 + [IMAGE] * 10 + [VIDEO] * 23
    order = rows_order((52,), batch_size=2, world_size=2, facts=RowFacts([0] * 52, kinds), by_modality=True)
    for epoch in range(3):
        steps = list(zip(*(order.batches(epoch, rank) for rank in range(2)), strict=True))
        assert len(steps) == 13
        mixed = sum(len({kinds[row] for batch in step for row in batch}) > 1 for step in steps)
        assert mixed == 13 - 19 // 4 - 10 // 4 - 23 // 4


@pytest.mark.parametrize("world_size", [1, 3])
def test_rows_left_out_vary_by_epoch(world_size: int) -> None:
    order = rows_order((10,), batch_size=1, world_size=world_size)
    left_out = [frozenset(range(10)) - set(visited(order, epoch)) for epoch in range(8)]
    assert all(len(rows) == 10 % world_size for rows in left_out)
    assert world_size == 1 or len(set(left_out)) > 1


lengths_of_rows = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(lengths_of_rows, st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_token_batches_visit_every_row_once_within_the_budget(
    lengths: list[int], world_size: int, packed: bool, modality: bool, epoch: int
) -> None:
    total = len(lengths)
    facts = RowFacts(lengths, [row % 3 for row in range(total)])
    order = tokens_order((total,), facts=facts, packed=packed, by_modality=modality, world_size=world_size)
    ranks = [order.batches(epoch, rank) for rank in range(world_size)]
    assert [len(batches) for batches in ranks] == [order.batch_count(rank) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    for batch in (batch for batches in ranks for batch in batches):
        tokens = [lengths[row] for row in batch]
        assert 0 < (sum(tokens) if packed else max(tokens) * len(tokens)) <= 20
        assert not modality or len({facts.modalities[row] for row in batch}) == 1
    rows = visited(order, epoch)
    assert len(set(rows)) == len(rows)
    left_out = total - len(rows)
    assert left_out < world_size
    if left_out:
        assert all(len(batch) == 1 for batches in ranks for batch in batches), "only where nothing is left to split"


def test_token_batches_are_as_full_as_they_can_be() -> None:
    draws = random.Random(0)
    lengths = sorted((draws.randint(10, 400) for _ in range(2000)), reverse=True)
    packed = packed_batches(range(2000), lengths.__getitem__, 1000)
    assert len(packed) <= 1.01 * sum(lengths) / 1000 + 1, "nearly no room is wasted"
    padded = padded_batches(range(2000), lengths.__getitem__, 1000)
    held = sum(lengths[batch[0]] * len(batch) for batch in padded)
    assert sum(lengths) > 0.95 * held, "rows of like length stand together: little padding"
    assert packed_batches([0, 1, 2, 3], [7, 5, 5, 3].__getitem__, 10) == [[0, 3], [1, 2]]
    assert padded_batches([0, 1, 2, 3], [5, 5, 4, 3].__getitem__, 10) == [[0, 1], [2, 3]]


def test_batches_are_split_until_every_rank_has_one() -> None:
    assert evenly_many([[0, 1, 2, 3], [4], [5, 6]], 3) == [[0, 1, 2, 3], [4], [5, 6]]
    assert evenly_many([[0, 1, 2, 3], [4], [5, 6]], 4) == [[0, 1], [2, 3], [4], [5, 6]]
    assert evenly_many([[0, 1, 2, 3], [4]], 5) == [[0], [1], [2], [3], [4]]
    assert evenly_many([[0], [1], [2]], 2) == [[0], [1]]
    assert evenly_many([[0]], 2) == []


def test_ranks_of_a_token_step_have_like_lengths() -> None:
    lengths = [1 + row % 50 for row in range(1000)]
    order = tokens_order((1000,), facts=RowFacts(lengths, [TEXT] * 1000), max_tokens=200, world_size=4)
    steps = zip(*(order.batches(0, rank) for rank in range(4)), strict=True)
    spreads = [
        max(lengths[row] for batch in step for row in batch) - min(lengths[row] for batch in step for row in batch)
        for step in steps
    ]
    assert sum(spreads) / len(spreads) < 12, "50 at random"


def test_token_batches_of_weighted_strata() -> None:
    order = tokens_order((40, 40), weights=(2.0, 0.5), facts=RowFacts([10] * 80, [TEXT] * 80))
    assert order.batch_count(0) == 40 + 10
    epochs = [Counter(visited(order, epoch)) for epoch in range(4)]
    for visits in epochs:
        assert all(visits[row] == 2 for row in range(40))
        assert sum(visits[row] for row in range(40, 80)) == 20 and max(visits[row] for row in range(40, 80)) == 1
    assert len({frozenset(visits) for visits in epochs}) > 1, "another half each epoch"
