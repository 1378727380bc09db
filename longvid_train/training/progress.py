"""A progress bar for logs: one line every few seconds instead of a bar that redraws itself, so a log file stays
readable."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar


class LineProgress(ProgressBar):
    """Print ``step 120/2400  loss 1.234  lr 1.0e-03  3.2 steps/s  12:01 left`` to stderr at most every ``interval_s``
    seconds.

    The first and the last step are always printed. Only rank 0 prints.
    """

    def __init__(self, interval_s: float = 10.0) -> None:
        super().__init__()
        self.interval_s = interval_s
        self._enabled = True
        self._started_s = 0.0
        self._printed_s = float("-inf")
        self._first_step = 0

    def disable(self) -> None:
        """Stop printing (Lightning calls this on every rank but 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started_s = time.monotonic()
        self._printed_s = float("-inf")
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Print a line if the last one is ``interval_s`` old or training is over."""
        now = time.monotonic()
        total = trainer.estimated_stepping_batches
        if not self._enabled or (now - self._printed_s < self.interval_s and trainer.global_step < total):
            return
        self._printed_s = now
        print(self._line(trainer, now, total), file=sys.stderr, flush=True)

    def _line(self, trainer: pl.Trainer, now: float, total: float) -> str:
        done = trainer.global_step - self._first_step
        rate = done / max(now - self._started_s, 1e-9)
        metrics = trainer.callback_metrics
        parts = [f"step {trainer.global_step}/{total:.0f}"]
        if "train/loss" in metrics:
            parts.append(f"loss {float(metrics['train/loss']):.4f}")
        if "train/lr" in metrics:
            parts.append(f"lr {float(metrics['train/lr']):.2e}")
        parts.append(f"{rate:.2f} steps/s")
        if rate > 0 and total != float("inf"):
            left_s = int((total - trainer.global_step) / rate)
            parts.append(f"{left_s // 60}:{left_s % 60:02d} left")
        return "  ".join(parts)
