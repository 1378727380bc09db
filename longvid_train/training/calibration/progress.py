"""Progress of a pass over rows in a log: the lines of training's progress, with rows for steps."""

import sys
import time
from typing import Any

import pytorch_lightning as pl

from longvid_train.training.progress import LineProgress


class RowProgress(LineProgress):
    """Print ``statistics 12/64 rows  1.2 rows/s  0:43 left`` to stderr at most every ``interval_s`` seconds, and at the
    last row of this process."""

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started_s = time.monotonic()
        self._printed_s = float("-inf")

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Print a line if one is due."""
        now, done, total = time.monotonic(), batch_idx + 1, int(trainer.num_predict_batches[dataloader_idx])
        if not self._enabled or (now - self._printed_s < self.interval_s and done < total):
            return
        self._printed_s = now
        rate = done / max(now - self._started_s, 1e-9)
        left_s = int((total - done) / rate)
        line = f"{pl_module.what} {done}/{total} rows  {rate:.2f} rows/s  {left_s // 60}:{left_s % 60:02d} left"
        print(line, file=sys.stderr, flush=True)
