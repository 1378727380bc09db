"""The parts of a step, as Lightning's loop goes through them, marked in a ``torch.profiler`` trace."""

import re
from enum import StrEnum
from typing import Any

from pytorch_lightning.profilers import Profiler
from torch.autograd.profiler import record_function

from longvid_train.training.data_wait import EPOCH, FETCH, PassingProfiler


class Part(StrEnum):
    """What a moment of training went to.

    The first five, and checkpoints and validation, are marked in the trace. The others are found in it: exposed
    communication (hidden behind no computation) is divided into ``WAITING``, for a rank that has not come yet, and
    ``COMMUNICATION``, the transfer; ``HOST`` is an idle accelerator in the forward pass, backward pass or optimiser,
    which waits for Python to launch its next kernel; ``OTHER`` is the rest: callbacks, logging, the loop itself.
    """

    DATA = "data_wait"
    COPY = "host_to_device"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    COMMUNICATION = "communication"
    WAITING = "waiting_for_ranks"
    HOST = "host"
    CHECKPOINT = "checkpoint"
    VALIDATION = "validation"
    OTHER = "other"


MARK = "longvid::"
"""Marks are named so in a trace, with the part behind it."""

WINDOW = "window"
"""The mark of the whole profiled window."""

_ACTIONS = {
    Part.COPY: re.compile(r"\[Strategy\]\w+\.batch_to_device"),
    Part.FORWARD: re.compile(r"\[Strategy\]\w+\.training_step"),
    Part.BACKWARD: re.compile(r"\[Strategy\]\w+\.backward"),
    Part.OPTIMIZER: re.compile(r"\[LightningModule\]\w+\.optimizer_step"),
    Part.CHECKPOINT: re.compile(r"save_checkpoint"),
}
"""Names that Lightning's loops give their actions (``pytorch_lightning.trainer.call``)."""


def part_of_action(action_name: str) -> Part | None:
    """The part that an action of Lightning's loop is, None for those that are not told apart."""
    if action_name in (FETCH, EPOCH):
        return Part.DATA
    return next((part for part, pattern in _ACTIONS.items() if pattern.fullmatch(action_name)), None)


class PartMarks(PassingProfiler):
    """A Lightning profiler that marks the parts of a step in the running ``torch.profiler`` trace.

    Waiting for data is a fetch, and the start of an epoch up to its first fetch: there the loader's workers start. An
    optimiser step contains the forward and the backward pass: where marks lie in each other, the inner one is meant.
    """

    def __init__(self, inner: Profiler) -> None:
        super().__init__(inner)
        self._open: dict[str, list[Any]] = {}

    def start(self, action_name: str) -> None:
        """Begin an action."""
        super().start(action_name)
        if action_name == FETCH:
            self.end_mark(EPOCH)
        part = part_of_action(action_name)
        if part is not None:
            self.begin_mark(part, action_name)

    def stop(self, action_name: str) -> None:
        """End an action; one that began before this profiler was there has no mark."""
        self.end_mark(action_name)
        super().stop(action_name)

    def begin_mark(self, name: str, action_name: str) -> None:
        """Begin a mark that ends with ``action_name``."""
        mark: Any = record_function(f"{MARK}{name}")
        mark.__enter__()
        self._open.setdefault(action_name, []).append(mark)

    def end_mark(self, action_name: str) -> None:
        """End the newest mark of ``action_name``, if there is one."""
        marks = self._open.get(action_name)
        if marks:
            marks.pop().__exit__(None, None, None)
