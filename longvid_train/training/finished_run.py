"""Ending a run that was killed between its last step and its end."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from longvid_train.training.answers import AnswerAccuracy
from longvid_train.training.callbacks import ExportModel


class FinishedRun(Callback):
    """Exports the model and answers "after" when a run is continued from its last step.

    Lightning skips the end hooks when the checkpoint it continues from has no step left to train: without this, a run
    killed during its export would never have one.
    """

    def __init__(self) -> None:
        self._started = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There are steps to train."""
        self._started = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export and answer if no step was left."""
        if self._started:
            return
        pl_module.to(trainer.strategy.root_device)
        pl_module.on_train_start()
        for callback in trainer.callbacks:
            if isinstance(callback, (ExportModel, AnswerAccuracy)):
                callback.on_train_end(trainer, pl_module)
