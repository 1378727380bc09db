"""Pools, batches of alike questions, and the shares of processes."""

from hypothesis import given
from hypothesis import strategies as st

from longvid_train.evaluation.local.batches import alike, pools, share

KEYS = st.lists(st.integers(0, 4), max_size=40)


@given(KEYS, st.integers(1, 7))
def test_every_position_is_in_one_batch_of_equal_keys(keys: list[int], size: int) -> None:
    batches = alike(keys, size)
    assert sorted(place for batch in batches for place in batch) == list(range(len(keys)))
    assert all(len(batch) <= size and len({keys[place] for place in batch}) == 1 for batch in batches)
    assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)
    fullest = sum(-(-keys.count(key) // size) for key in set(keys))
    assert len(batches) == fullest


@given(KEYS, st.integers(1, 5))
def test_shares_are_disjoint_and_keep_a_video_together(keys: list[int], processes: int) -> None:
    shares = [share(keys, rank, processes) for rank in range(processes)]
    assert sorted(place for one in shares for place in one) == list(range(len(keys)))
    assert all(one == sorted(one) for one in shares)
    for key in set(keys):
        assert sum(any(keys[place] == key for place in one) for one in shares) == 1
    videos = [len({keys[place] for place in one}) for one in shares]
    assert max(videos) - min(videos) <= 1


@given(st.lists(st.integers(), max_size=30), st.integers(1, 9))
def test_pools_are_consecutive(items: list[int], size: int) -> None:
    made = list(pools(items, size))
    assert [item for pool in made for item in pool] == items
    assert all(len(pool) == size for pool in made[:-1])
