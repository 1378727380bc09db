"""Locks on files: two processes never make the same step at once, and a full run has its folder for itself.

A lock belongs to the open file and goes with the last process that has it open: a command that outlives the killed
``longvid ablate`` above it still holds its step.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from longvid_train.errors import UserError

FOLDER_LOCK = ".lock"
_POLL_S = 0.1


@contextmanager
def folder_lock(folder: Path, *, shared: bool) -> Iterator[None]:
    """Hold an ablation's folder.

    Args:
        folder: of the ablation; made if it is not there.
        shared: as wandb agents do, several of which may work in one folder.

    Raises:
        UserError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FOLDER_LOCK).open("a+") as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise UserError(
                f"{folder}: longvid ablate is at work there (process {stream.read().strip() or 'unknown'}); wait, "
                "end it, or choose another --out; --processes N runs several cells at once"
            ) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


@contextmanager
def step_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[int]:
    """Hold a step; waits for whoever has it.

    Args:
        path: of the lock file.
        on_wait: called again and again while somebody has it; what it raises ends the wait.

    Yields:
        The open file's descriptor, for the command that makes the step to inherit.
    """
    with path.open("a") as stream:
        while not _taken(stream.fileno()):
            on_wait()
            time.sleep(_POLL_S)
        yield stream.fileno()


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
