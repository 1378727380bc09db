"""Callbacks every training run has."""

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from longvid_train.training.checkpoint import save_folder


class ExportModel(Callback):
    """At the end of ``fit``, write model and processor in transformers' format to ``folder`` (rank 0 only, all or
    nothing).

    ``longvid ask`` and the next stage load that folder; the processor records the chat template and the content grids
    the run used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export. Lightning does not call this when training was interrupted."""
        if trainer.is_global_zero and not trainer.fast_dev_run:
            options = trainer.datamodule.conversation
            processor = pl_module.processor.trained_with(
                template=trainer.datamodule.template.name,
                image_content_grid=options.image_content_grid,
                video_content_grid=options.video_content_grid,
            )
            save_folder(self.folder, pl_module.model, processor)
        trainer.strategy.barrier("export")
