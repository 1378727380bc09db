"""The sliding window: never more than the ceilings in any 60 seconds, and no longer a wait than that needs."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.endpoint.rate import WINDOW_S, RateLimit, Reservation
from tests.endpoint.conftest import VirtualTime


def limit_of(time: VirtualTime, requests: int | None, tokens: int | None) -> RateLimit:
    return RateLimit(requests, tokens, clock=time.clock, sleep=time.sleep)


def in_window(made: list[Reservation], first: int) -> list[Reservation]:
    """Reservations from number ``first`` on that start less than a window after it."""
    return [later for later in made[first:] if later.at_s < made[first].at_s + WINDOW_S]


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=30),
    requests=st.none() | st.integers(1, 5),
    tokens=st.none() | st.integers(50, 200),
    pauses_s=st.lists(st.floats(0, 50), min_size=30, max_size=30),
)
def test_no_window_holds_more_than_the_ceilings(
    sizes: list[int], requests: int | None, tokens: int | None, pauses_s: list[float]
) -> None:
    time = VirtualTime()
    limit = limit_of(time, requests, tokens)
    made = []
    for size, pause_s in zip(sizes, pauses_s, strict=False):
        time.now_s += pause_s
        made.append(limit.acquire(size))
    for first in range(len(made)):
        held = in_window(made, first)
        assert requests is None or len(held) <= requests
        assert tokens is None or len(held) == 1 or sum(one.tokens for one in held) <= tokens


def test_a_request_waits_no_longer_than_it_must() -> None:
    time = VirtualTime()
    limit = limit_of(time, 2, 100)
    limit.acquire(40)
    time.now_s += 10
    limit.acquire(40)
    limit.acquire(40)
    assert time.slept == [pytest.approx(50.0)]
    limit.acquire(100)
    assert time.slept[1:] == [pytest.approx(60.0)]


def test_a_request_larger_than_the_ceiling_passes_alone() -> None:
    time = VirtualTime()
    limit = limit_of(time, None, 100)
    limit.acquire(10)
    limit.acquire(500)
    limit.acquire(10)
    assert time.slept == [pytest.approx(60.0), pytest.approx(60.0)]


def test_what_a_reply_really_took_makes_room() -> None:
    time = VirtualTime()
    limit = limit_of(time, None, 100)
    limit.settle(limit.acquire(90), 20)
    limit.acquire(80)
    assert time.slept == []


def test_a_pause_holds_everybody_back() -> None:
    time = VirtualTime()
    limit = limit_of(time, None, None)
    limit.pause(30)
    limit.pause(5)
    assert limit.acquire(1).at_s == pytest.approx(1030.0)


def test_threads_share_one_window() -> None:
    time = VirtualTime()
    limit = limit_of(time, 3, None)
    with ThreadPoolExecutor(8) as pool:
        made = sorted(pool.map(lambda _: limit.acquire(1), range(24)), key=lambda one: one.at_s)
    assert all(len(in_window(made, first)) <= 3 for first in range(len(made)))
