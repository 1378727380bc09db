"""What was left out of the training rows: logged each step, listed row by row, summed up at the end."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.training.notices import notice
from longvid_train.training.strategies.sequence import counts_rows
from longvid_train.types import Batch, Shortening

ROWS_FILE = "shortened_rows.jsonl"
SAMPLES, FRAMES, TEXT_TOKENS = "data/shortened_samples", "data/frames_dropped", "data/text_tokens_dropped"


class ShortenedRows(Callback):
    """Report rows that the token budget shortened, and rows that were skipped.

    With a budget, ``data/shortened_samples``, ``data/frames_dropped`` and ``data/text_tokens_dropped`` are logged:
    totals since this start of the run, over all ranks. Each shortened row is written once to ``shortened_rows.jsonl``
    in the run folder (``shortened_rows_rank<r>.jsonl`` on other ranks). One line on stderr sums up when training ends.
    """

    def __init__(self) -> None:
        self._totals = Shortening(0, 0, 0)
        self._samples = 0
        self._listed: set[str] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start at 0, and learn which rows an earlier start has listed."""
        self._totals, self._samples, self._listed = Shortening(0, 0, 0), 0, set()
        path = _rows_file(trainer)
        if path.is_file():
            self._listed = {json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add the batch's rows."""
        if not _has_budget(trainer):
            return
        shortened = batch["shortened"] if counts_rows(trainer.strategy) else {}
        self._samples += len(shortened)
        for shortening in shortened.values():
            self._totals = Shortening(*(sum(pair) for pair in zip(self._totals, shortening, strict=True)))
        self._list(trainer, shortened)
        totals = {SAMPLES: self._samples, FRAMES: self._totals.frames, TEXT_TOKENS: self._totals.text_tokens}
        for name, value in totals.items():
            pl_module.log(name, float(value), reduce_fx="sum", sync_dist=True, batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the sum of all ranks, if anything was left out."""
        counted = isinstance(trainer.datamodule, ManifestDataModule) and counts_rows(trainer.strategy)
        counts = trainer.datamodule.counts().get("train") if counted else None
        skipped = (0, 0) if counts is None else (counts.too_long_samples, counts.bad_samples)
        own = torch.tensor([self._samples, *self._totals, *skipped], dtype=torch.float64, device=pl_module.device)
        total = trainer.strategy.reduce(own, reduce_op="sum")
        samples, frames, visual, text, too_long, bad = (int(value) for value in total.tolist())
        if trainer.is_global_zero and (samples or too_long or bad):
            notice(
                f"left out of the training rows: {frames} frames, {visual} visual and {text} text tokens of {samples} "
                f"shortened samples ({ROWS_FILE}); {too_long} samples too long and {bad} unreadable were skipped"
            )

    def _list(self, trainer: pl.Trainer, shortened: dict[str, Shortening]) -> None:
        fresh = {row: shortening for row, shortening in shortened.items() if row not in self._listed}
        if not fresh:
            return
        self._listed.update(fresh)
        with _rows_file(trainer).open("a", encoding="utf-8") as stream:
            for row, shortening in fresh.items():
                stream.write(json.dumps({"id": row, **shortening._asdict()}, ensure_ascii=False) + "\n")


def _has_budget(trainer: pl.Trainer) -> bool:
    """Whether rows may be shortened: the same on every rank, so that all log together."""
    return isinstance(trainer.datamodule, ManifestDataModule) and bool(trainer.datamodule.budget.shorten)


def _rows_file(trainer: pl.Trainer) -> Path:
    rank = trainer.global_rank
    name = ROWS_FILE if rank == 0 else f"{Path(ROWS_FILE).stem}_rank{rank}{Path(ROWS_FILE).suffix}"
    return Path(trainer.default_root_dir) / name
