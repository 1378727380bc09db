"""One evaluation at a time in a folder: two would ask the same questions and answer each of them twice.

The lock belongs to the process that holds the file open and goes with it, however it ends.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longvid_train.errors import UserError

LOCK_FILE = ".lock"


@contextmanager
def sole_use(out: Path) -> Iterator[None]:
    """Hold the folder of an evaluation.

    Args:
        out: of the evaluation; made if it is not there.

    Raises:
        UserError: another process has it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_FILE).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise UserError(
                f"{out}: longvid evaluate is at work there (process {stream.read().strip() or 'unknown'}); wait, end "
                "it, or choose another --out; --processes N answers in several processes"
            ) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
