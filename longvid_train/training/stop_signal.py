"""SIGTERM: finish the optimiser step, save, and say how to continue.

Lightning's own handler stops after a micro-batch, in the middle of an accumulated step, and under DDP starts a
collective inside the signal handler, which meets the collectives of the interrupted step. Here the handler sets a flag,
and the ranks agree on it between two steps.
"""

import shlex
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from longvid_train.training.boundary import find_boundary

EXIT_STOPPED = 128 + signal.SIGTERM
"""Exit status of a run that stopped for SIGTERM: not 0, since a script must not go on to the next stage."""


class StopRequestedError(Exception):
    """Every rank stops between two optimiser steps because one of them got SIGTERM."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by SIGTERM after step {step}")
        self.step = step
        self.checkpoint: Path | None = None
        """The newest checkpoint of the run, once it is saved."""


class StopOnSigterm(Callback):
    """Raises `StopRequestedError` on every rank at the first step boundary after any rank got SIGTERM.

    A run whose last step is done is not stopped: it finishes. Further SIGTERMs change nothing; SIGKILL ends the
    process at once and costs the steps since the last checkpoint.
    """

    def __init__(self) -> None:
        self._requested = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM over from Lightning, which restores the handler before it after the run."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before the first micro-batch of a step.

        Raises:
            StopRequestedError: some rank got SIGTERM.
        """
        if find_boundary(trainer).at_boundary and trainer.strategy.reduce_boolean_decision(self._requested, all=False):
            raise StopRequestedError(trainer.global_step)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._requested = True


def how_to_continue(stop: StopRequestedError, command_line: list[str]) -> str:
    """The line a stopped run ends with."""
    words = _without_checkpoint(command_line)
    if stop.checkpoint is None:
        return f"{stop}; nothing to continue from; start again with: {shlex.join(words)}"
    return f"{stop}; continue from {stop.checkpoint} with: {shlex.join([*words, '--ckpt_path', 'last'])}"


def _without_checkpoint(words: list[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != "--ckpt_path" and not word.startswith("--ckpt_path="):
            kept.append(word)
        skip = word == "--ckpt_path"
    return kept
