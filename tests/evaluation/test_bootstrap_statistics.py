"""Intervals against exact distributions; moving means by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.evaluation.statistics import bootstrap_clusters, bootstrap_mean, moving_mean


def binomial_quantile(n: int, p: float, level: float) -> int:
    """Smallest k with P(X <= k) >= level."""
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if total >= level:
            return k
    return n


@pytest.mark.parametrize(("right", "n"), [(8, 40), (20, 40), (3, 25)])
def test_interval_of_right_and_wrong_answers_is_binomial(right: int, n: int) -> None:
    """A resampled count of right answers is exactly Binomial(n, right / n)."""
    found = bootstrap_mean([1.0] * right + [0.0] * (n - right), seed=1)
    assert (found.n, found.mean) == (n, right / n)
    assert abs(found.low * n - binomial_quantile(n, right / n, 0.025)) <= 1
    assert abs(found.high * n - binomial_quantile(n, right / n, 0.975)) <= 1
    assert found.low < found.mean < found.high


def test_two_values_by_hand() -> None:
    """The mean of two draws from {0, 1} is 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the middle 40 % is 1/2 alone."""
    wide, narrow = bootstrap_mean([0.0, 1.0], level=0.95), bootstrap_mean([0.0, 1.0], level=0.4)
    assert (wide.low, wide.high) == (0.0, 1.0)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_same_seed_same_interval_and_other_seed_other_draws() -> None:
    values = [math.sin(index) for index in range(60)]
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [([], {}, "no values"), ([1.0], {"resamples": 999}, "at least 1000"), ([1.0], {"level": 1.0}, "between 0 and 1")],
)
def test_useless_requests_are_refused(values: list[float], settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bootstrap_mean(values, **settings)  # type: ignore[arg-type]


def test_moving_mean_shrinks_at_the_ends() -> None:
    assert moving_mean([1, 2, 6, 3], 3) == [1.5, 3.0, pytest.approx(11 / 3), 4.5]
    with pytest.raises(UserError, match="odd"):
        moving_mean([1.0], 2)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(0, 6))
def test_moving_mean_is_the_mean_of_its_window(values: list[float], half: int) -> None:
    found = moving_mean(values, 2 * half + 1)
    for index, mean in enumerate(found):
        window = values[max(0, index - half) : index + half + 1]
        assert mean == pytest.approx(sum(window) / len(window), abs=1e-6)


def test_clusters_of_one_value_are_the_plain_bootstrap() -> None:
    values = [0.0, 1.0, 1.0, 0.5, 0.0, 1.0]
    plain, clustered = bootstrap_mean(values, seed=3), bootstrap_clusters(values, "abcdef", seed=3)
    assert (clustered.n, clustered.mean) == (6, plain.mean)
    assert (clustered.low, clustered.high) == pytest.approx((plain.low, plain.high))


def test_copies_within_a_cluster_tell_nothing_new() -> None:
    """Ten questions on each of six videos, answered alike, are six observations, not sixty."""
    values = [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    once = bootstrap_clusters(values, range(6), seed=1)
    copied = bootstrap_clusters(values * 10, [*range(6)] * 10, seed=1)
    naive = bootstrap_mean(values * 10, seed=1)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_clusters_of_unequal_size_keep_the_mean_over_values() -> None:
    found = bootstrap_clusters([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert found.mean == 0.75
    assert (found.low, found.high) == (0.0, 1.0)
