"""What rank 0 finds out alone and all ranks must act on: one that raised alone would leave the others waiting."""

import torch

from longvid_train.training.checkpoint_io import CheckpointWriteError


def raise_on_all(obstacle: str | None) -> None:
    """Raise rank 0's obstacle on all ranks; all call it, and only rank 0's is looked at.

    Raises:
        CheckpointWriteError: rank 0 has one.
    """
    shared = [obstacle]
    torch.distributed.broadcast_object_list(shared, src=0)
    if shared[0] is not None:
        raise CheckpointWriteError(shared[0])
