"""What the processes of a calibration tell each other; with one process nothing is sent."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch.distributed

from longvid_train.errors import UserError

T = TypeVar("T")


def gathered(trainer: pl.Trainer, value: T) -> list[T]:
    """The value of every process, by rank, on every process."""
    if trainer.world_size == 1:
        return [value]
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, value)
    return parts


def raise_together(trainer: pl.Trainer, mistake: str) -> None:
    """Raise the first process's mistake on all of them, so that none waits for another.

    Raises:
        UserError: a process had one.
    """
    found = [one for one in gathered(trainer, mistake) if one]
    if found:
        raise UserError(found[0])


def on_first(trainer: pl.Trainer, body: Callable[[], T]) -> T:
    """Run ``body`` on rank 0 and give its result, or its `UserError`, to all processes."""
    result: Any = None
    mistake = ""
    if trainer.is_global_zero:
        try:
            result = body()
        except UserError as error:
            mistake = str(error)
    raise_together(trainer, mistake)
    shared: T = trainer.strategy.broadcast(result)
    return shared
