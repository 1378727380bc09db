"""The rows of an optimiser step, divided anew: a run that is continued on another number of processes.

An epoch in the order of ``RowOrder`` is one list of rows, cut into optimiser steps one behind the other; how each step
is divided over ranks and micro-batches does not change which rows it has. So a run whose step has as many rows as
before goes on with the rows that would have come next, and only its counters, which count micro-batches, are told
anew. Rows that fill no micro-batch at the end of an epoch may be others: fewer than there are ranks are left out.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.data.loader import BatchSampler, ManifestLoader
from longvid_train.data.order import RowOrder
from longvid_train.errors import UserError

PROGRESS = "epoch_loop.batch_progress"
"""Where Lightning's fit loop counts micro-batches."""


@dataclass(frozen=True, kw_only=True)
class StepSplit:
    """How the rows of an optimiser step are divided.

    Attributes:
        batch_size: rows of a micro-batch on one rank.
        ranks: that read rows of their own.
        accumulate: micro-batches of a step.
        batches: micro-batches of an epoch on one rank.
    """

    batch_size: int
    ranks: int
    accumulate: int
    batches: int

    @property
    def rows(self) -> int:
        """Of an optimiser step."""
        return self.batch_size * self.ranks * self.accumulate


def split_of(loader: Any, trainer: pl.Trainer) -> StepSplit | None:
    """How a training loader's steps are divided; None where another number of ranks would make other steps.

    That is where rows are grouped by length or modality or counted in tokens, and where ``limit_train_batches`` cuts
    epochs short.
    """
    if not isinstance(loader, ManifestLoader) or trainer.limit_train_batches not in (None, 1.0):
        return None
    sampler = loader.sampler
    order = sampler.order if isinstance(sampler, BatchSampler) else None
    if not isinstance(order, RowOrder) or order.facts is not None:
        return None
    return StepSplit(
        batch_size=order.batch_size,
        ranks=order.world_size,
        accumulate=trainer.accumulate_grad_batches,
        batches=len(loader),
    )


def coming_split(trainer: pl.Trainer) -> StepSplit | None:
    """`split_of` the loader that the trainer's data module is about to make."""
    data = trainer.datamodule
    return split_of(data.train_dataloader(), trainer) if isinstance(data, ManifestDataModule) else None


def check_same_rows(before: StepSplit | None, now: StepSplit | None, *, where: str, processes: int) -> None:
    """Refuse to continue where an optimiser step would have other rows.

    Args:
        before: of the checkpoint.
        now: of this run.
        where: names the checkpoint.
        processes: that wrote it.

    Raises:
        UserError: they differ, or cannot be compared.
    """
    if before is None or now is None:
        raise UserError(
            f"{where}: written by {processes} processes, and its batches depend on their number (rows grouped by "
            f"length or modality or counted in tokens, or trainer.limit_train_batches); continue with {processes}"
        )
    if before.rows != now.rows:
        raise UserError(
            f"{where}: an optimiser step had {_product(before)} rows and now has {_product(now)} (batch size x "
            f"processes x micro-batches); set --data.loading.global_batch_size {before.rows}"
        )


def resplit(checkpoint: dict[str, Any], before: StepSplit, now: StepSplit, *, data: str) -> dict[str, Any]:
    """The checkpoint's state as a run divided as ``now`` would have written it at the same optimiser step.

    Args:
        checkpoint: Lightning's, of an optimiser-step boundary.
        before: how its run divided a step.
        now: how this run does; as many rows.
        data: key of the data module's state.
    """
    told = deepcopy(checkpoint)
    loop = told["loops"]["fit_loop"]
    progress = loop[PROGRESS]
    seen = progress["current"]["ready"]
    epochs, rest = divmod(progress["total"]["ready"] - seen, before.batches)
    assert rest == 0, "an epoch before this one was whole"
    seen_now = resplit_count(seen, before, now)
    for counts, ready in ((progress["current"], seen_now), (progress["total"], epochs * now.batches + seen_now)):
        behind = {name: counts["ready"] - count for name, count in counts.items()}
        counts.update({name: ready - less for name, less in behind.items()})
    progress["is_last_batch"] = seen_now == now.batches
    for place in (told[data]["train"], *loop["state_dict"]["combined_loader"]):
        place["batches"] = resplit_count(place["batches"], before, now)
        place["order"] |= {"batch_size": now.batch_size, "world_size": now.ranks}
    return told


def resplit_count(batches: int, before: StepSplit, now: StepSplit) -> int:
    """Micro-batches of an epoch that are done, counted anew.

    Args:
        batches: done, at an optimiser-step boundary.
        before: how they were divided.
        now: how they are counted from here on.
    """
    if batches >= before.batches:
        return now.batches
    steps, rest = divmod(batches, before.accumulate)
    assert rest == 0, "checkpoints are of optimiser-step boundaries"
    return min(steps * now.accumulate, now.batches)


def _product(split: StepSplit) -> str:
    return f"{split.batch_size} x {split.ranks} x {split.accumulate} = {split.rows}"
