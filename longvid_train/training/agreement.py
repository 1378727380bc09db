"""What one rank finds out alone and all ranks must act on: one that raised alone would leave the others waiting."""

import torch
from torch.distributed import ProcessGroup

from longvid_train.training.checkpoint_io import CheckpointWriteError


def raise_on_all(obstacle: str | None, group: ProcessGroup | None = None) -> None:
    """Raise the lowest rank's obstacle on all ranks; all call it, and nobody returns before all have.

    Args:
        obstacle: this rank's; None if it has none.
        group: of all ranks; None is the default one, which belongs to the thread that trains.

    Raises:
        CheckpointWriteError: a rank has one.
    """
    told: list[str | None] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(told, obstacle, group=group)
    found = next((one for one in told if one is not None), None)
    if found is not None:
        raise CheckpointWriteError(found)
