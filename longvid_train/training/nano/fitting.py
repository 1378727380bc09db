"""One training run of a nano recipe under Lightning."""

import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger


def fit(
    module: pl.LightningModule,
    batches: Any,
    steps: int,
    runs: Path,
    name: str,
    *,
    accelerator: str = "cpu",
    workers: int = 0,
) -> float:
    """Train for ``steps`` steps, logging to ``runs/name/metrics.csv``; return the seconds.

    Args:
        module: trained in place.
        batches: an iterable data set of whole batches.
        steps: optimiser steps.
        runs: folder of logs.
        name: of this run.
        accelerator: Lightning's; one device.
        workers: processes that draw batches, 0 or 1, so that their order follows the seed.
    """
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
    )
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=steps,
        gradient_clip_val=1.0,
        log_every_n_steps=min(25, steps),
        enable_checkpointing=False,
        enable_progress_bar=sys.stderr.isatty(),
        logger=CSVLogger(runs, name=name, version=""),
    )
    start = time.perf_counter()
    trainer.fit(module, loader)
    return time.perf_counter() - start
