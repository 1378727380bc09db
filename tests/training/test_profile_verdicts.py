"""What a profile says, from seconds by part."""

import pytest

from longvid_train.training.profiling.marks import Part
from longvid_train.training.profiling.report import as_json, table
from longvid_train.training.profiling.verdict import CAUSES, Cause, cause_shares, judge


def rank(**seconds: float) -> dict[Part, float]:
    return dict.fromkeys(Part, 0.0) | {Part[name.upper()]: value for name, value in seconds.items()}


def test_every_part_has_a_cause() -> None:
    assert set(CAUSES) == set(Part)
    assert cause_shares(rank(forward=1, backward=2, optimizer=1, data=4))[Cause.COMPUTE] == 0.5


@pytest.mark.parametrize(
    ("parts", "cause", "share"),
    [
        (rank(data=6.1, forward=1, backward=2, communication=0.4, other=0.5), Cause.DATA, 0.61),
        (rank(data=2.4, backward=7.6), Cause.COMPUTE, 0.76),
        (rank(data=2.5, backward=7.5), Cause.DATA, 0.25),
        (rank(data=3, communication=3.5, backward=3.5), Cause.COMMUNICATION, 0.35),
        (rank(copy=4, backward=6), Cause.COPY, 0.4),
        (rank(host=5, backward=5), Cause.HOST, 0.5),
        (rank(checkpoint=4, validation=3, backward=3), Cause.CHECKPOINTS, 0.4),
        (rank(validation=4, backward=6), Cause.VALIDATION, 0.4),
        (rank(other=4, backward=6), Cause.CALLBACKS, 0.4),
    ],
)
def test_the_largest_wait_that_is_worth_removing(parts: dict[Part, float], cause: Cause, share: float) -> None:
    verdict = judge([parts], steps=2, workers=3)
    assert (verdict.cause, verdict.share) == (cause, pytest.approx(share))
    assert "\n" not in verdict.text
    claim = "bound by compute" if cause is Cause.COMPUTE else f"waits for {cause}"
    assert verdict.text.startswith(f"{claim}: {share:.0%} of a step of {sum(parts.values()) / 2:.3g} s (")


def test_the_line_names_the_numbers_and_what_to_change() -> None:
    verdict = judge([rank(data=6, backward=3.5, communication=0.46, other=0.04)], steps=10, workers=2)
    assert verdict.text == (
        "waits for data: 60% of a step of 1 s (compute 35%, communication 5%); raise data.loading.num_workers (now 2), "
        "set data.media.cache_bytes, or read tower features (data.media.features)"
    )


def test_ranks_that_wait_for_a_rank_that_waits_for_data_wait_for_data() -> None:
    ranks = [rank(waiting=6, backward=3, communication=1), rank(data=6, backward=3, communication=1)]
    verdict = judge(ranks, steps=1, workers=1)
    assert (verdict.cause, verdict.rank, verdict.share) == (Cause.DATA, 1, 0.6)
    assert "; rank 1 sets the pace, the others wait 60% of a step for it; raise data.loading" in verdict.text


def test_a_rank_with_more_work_is_told_from_slow_transfer() -> None:
    unlike = judge(
        [rank(backward=9, communication=1), rank(waiting=4, backward=5, communication=1)], steps=1, workers=1
    )
    assert (unlike.cause, unlike.rank, unlike.share) == (Cause.RANKS, 0, 0.4)
    assert unlike.text.startswith("ranks wait for rank 0: 40% of a step of 10 s (compute 90%, communication 10%); give")
    slow = judge([rank(backward=5, communication=5), rank(waiting=1, backward=4, communication=5)], steps=1, workers=1)
    assert (slow.cause, slow.rank) == (Cause.COMMUNICATION, 0)


def test_ranks_that_wait_for_each_other_in_turn() -> None:
    verdict = judge([rank(waiting=3, backward=7), rank(waiting=4, backward=6)], steps=1, workers=1)
    assert (verdict.cause, verdict.share) == (Cause.RANKS, pytest.approx(0.3))


def test_a_table_and_json_of_seconds_a_step() -> None:
    ranks = [rank(data=1, backward=3), rank(waiting=2, backward=2)]
    assert table(ranks, 2).splitlines() == [
        "| seconds a step | rank 0 | rank 1 |",
        "|---|---|---|",
        "| data_wait | 0.5000 (25.0%) | 0.0000 (0.0%) |",
        "| backward | 1.5000 (75.0%) | 1.0000 (50.0%) |",
        "| waiting_for_ranks | 0.0000 (0.0%) | 1.0000 (50.0%) |",
        "| step | 2.0000 | 2.0000 |",
    ]
    written = as_json(ranks, judge(ranks, steps=2, workers=0), first_step=11, steps=2, device="cpu")
    assert written["seconds_per_step"][1]["waiting_for_ranks"] == 1.0
    assert (written["first_step"], written["verdict"]["cause"]) == (11, "data")
