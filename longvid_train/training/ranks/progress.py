"""Where this rank stands in its micro-batch, marked before other callbacks start their collectives."""

import sys
import threading
import time
from dataclasses import replace
from enum import IntEnum

from longvid_train.training.ranks.board import RankState


class Phase(IntEnum):
    """Parts of a micro-batch in their order."""

    DATA = 0
    FORWARD = 1
    BACKWARD = 2
    REDUCED = 3
    OPTIMIZER = 4


DOING = {
    Phase.DATA: "waiting for data",
    Phase.FORWARD: "forward pass",
    Phase.BACKWARD: "backward pass",
    Phase.REDUCED: "behind the backward pass",
    Phase.OPTIMIZER: "optimiser step",
}


class Progress:
    """The state of this rank and when it last changed; the training thread writes it, the monitor reads it."""

    def __init__(self, state: RankState) -> None:
        self._lock = threading.Lock()
        self._state = state
        self._since_s = time.monotonic()

    def mark(self, phase: Phase, *, step: int, micro_batch: int | None = None, doing: str | None = None) -> None:
        """The rank has come to ``phase``; to the next micro-batch if ``micro_batch`` is given."""
        with self._lock:
            number = self._state.micro_batch if micro_batch is None else micro_batch
            words = DOING[phase] if doing is None else doing
            self._state = replace(self._state, step=step, micro_batch=number, phase=int(phase), doing=words)
            self._since_s = time.monotonic()

    def end(self) -> RankState:
        """The rank leaves the job in order."""
        with self._lock:
            self._state = replace(self._state, ended=True)
            return self._state

    def read(self) -> tuple[RankState, float]:
        """Where the rank stands, and for how many seconds."""
        with self._lock:
            return self._state, time.monotonic() - self._since_s


def place_of_main_thread() -> str:
    """Where the training thread is: ``function (file:line)`` of its innermost Python frame."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
