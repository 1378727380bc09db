"""Counters of a run continued on another number of processes: the rows that come next are those that would have."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from longvid_train.data.order import RowOrder, Stratum
from longvid_train.errors import UserError
from longvid_train.training.step_split import PROGRESS, StepSplit, check_same_rows, resplit, resplit_count


def order_of(rows: int, split: StepSplit) -> RowOrder:
    return RowOrder(
        strata=(Stratum(range(rows)),), seed=3, shuffle=True, batch_size=split.batch_size, world_size=split.ranks
    )


def split_for(rows: int, batch_size: int, ranks: int, accumulate: int) -> StepSplit:
    split = StepSplit(batch_size=batch_size, ranks=ranks, accumulate=accumulate, batches=1)
    return StepSplit(
        batch_size=batch_size, ranks=ranks, accumulate=accumulate, batches=order_of(rows, split).batch_count(0)
    )


def rows_of(order: RowOrder, epoch: int, first: int, last: int) -> set[int]:
    """Rows that all ranks read in micro-batches ``first`` up to ``last`` of an epoch."""
    return {
        row for rank in range(order.world_size) for batch in order.batches(epoch, rank)[first:last] for row in batch
    }


@given(
    rows=st.integers(1, 80),
    step=st.sampled_from([4, 6, 12]),
    divided=st.tuples(*[st.tuples(st.integers(1, 4), st.integers(1, 4))] * 2),
    steps=st.integers(0, 6),
    epoch=st.integers(0, 3),
)
def test_every_whole_step_has_the_rows_it_would_have_had(
    rows: int, step: int, divided: tuple[tuple[int, int], tuple[int, int]], steps: int, epoch: int
) -> None:
    assume(all(step % (size * ranks) == 0 for size, ranks in divided))
    before, now = (split_for(rows, size, ranks, step // (size * ranks)) for size, ranks in divided)
    assume(rows >= (steps + 1) * step)
    old, new = order_of(rows, before), order_of(rows, now)
    done, told = steps * before.accumulate, resplit_count(steps * before.accumulate, before, now)
    assert rows_of(new, epoch, 0, told) == rows_of(old, epoch, 0, done)
    coming = rows_of(new, epoch, told, told + now.accumulate)
    assert coming == rows_of(old, epoch, done, done + before.accumulate)
    assert len(coming) == step
    assert resplit_count(before.batches, before, now) == now.batches


def checkpoint(split: StepSplit, *, epoch: int, batches: int, ends_step: bool = True) -> dict[str, Any]:
    """As Lightning writes it: ``completed`` lags where it is written at the end of a batch."""
    total = epoch * split.batches + batches
    place = {
        "epoch": epoch,
        "batches": batches,
        "order": {"batch_size": split.batch_size, "world_size": split.ranks, "seed": 3},
    }
    return {
        "global_step": 7,
        "loops": {
            "fit_loop": {
                PROGRESS: {
                    "current": {
                        "ready": batches,
                        "started": batches,
                        "processed": batches,
                        "completed": batches - ends_step,
                    },
                    "total": {"ready": total, "started": total, "processed": total, "completed": total - ends_step},
                    "is_last_batch": batches == split.batches,
                },
                "epoch_loop.state_dict": {"_batches_that_stepped": 7},
                "state_dict": {"combined_loader": [deepcopy(place)]},
            }
        },
        "ManifestDataModule": {"train": deepcopy(place)},
    }


TWO = StepSplit(batch_size=1, ranks=2, accumulate=6, batches=13)
FOUR = StepSplit(batch_size=3, ranks=4, accumulate=1, batches=3)


@pytest.mark.parametrize("ends_step", [True, False])
@pytest.mark.parametrize(("done", "told"), [(6, 1), (12, 2), (13, 3)])
def test_a_checkpoint_is_the_one_that_the_other_run_would_have_written(done: int, told: int, ends_step: bool) -> None:
    given_state = checkpoint(TWO, epoch=2, batches=done, ends_step=ends_step)
    kept = deepcopy(given_state)
    found = resplit(given_state, TWO, FOUR, data="ManifestDataModule")
    assert given_state == kept, "the checkpoint is not changed"
    assert found == checkpoint(FOUR, epoch=2, batches=told, ends_step=ends_step)
    assert resplit(given_state, TWO, TWO, data="ManifestDataModule") == given_state


def test_a_step_with_other_rows_or_an_order_that_depends_on_ranks_is_refused() -> None:
    check_same_rows(TWO, FOUR, where="--ckpt_path a.ckpt", processes=2)
    eight = StepSplit(batch_size=1, ranks=4, accumulate=2, batches=5)
    with pytest.raises(
        UserError,
        match=r"^--ckpt_path a\.ckpt: an optimiser step had 1 x 2 x 6 = 12 rows and now has 1 x 4 x 2 = 8 \(batch size "
        r"x processes x micro-batches\); set --data\.loading\.global_batch_size 12$",
    ):
        check_same_rows(TWO, eight, where="--ckpt_path a.ckpt", processes=2)
    for before, now in ((None, FOUR), (TWO, None)):
        with pytest.raises(UserError, match=r"batches depend on their number .* continue with 2$"):
            check_same_rows(before, now, where=str(Path("a.ckpt")), processes=2)
