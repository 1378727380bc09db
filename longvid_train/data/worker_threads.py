"""Threads that decode a video, in a loader's worker and elsewhere."""

from torch.utils.data import get_worker_info


def decoding_threads() -> int | None:
    """``workers`` for ``read_clip``: 1 in a loader's worker, beside which others decode; None, all cores, elsewhere."""
    return None if get_worker_info() is None else 1
