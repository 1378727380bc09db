"""Callbacks every training run has."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from longvid_train.models.adapter import AdapterRecord
from longvid_train.models.lora import LoraExport
from longvid_train.training.checkpoint import save_folder
from longvid_train.training.strategies.whole import exported_weights

MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"


class ExportModel(Callback):
    """At the end of ``fit``, write what was trained into the run folder (rank 0 only, all or nothing).

    ``model/`` is the model in transformers' format, or ``adapter/`` the adapter in peft's when the run trained LoRA.
    ``longvid ask`` loads either; the processor beside it records the chat template and the content grids the run used.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export. Lightning does not call this when training was interrupted."""
        if not trainer.fast_dev_run:
            with exported_weights(trainer.strategy):
                if trainer.is_global_zero:
                    self._export(pl_module)
        trainer.strategy.barrier("export")

    def _export(self, pl_module: Any) -> None:
        parts = pl_module.export_parts()
        if pl_module.lora_shape is None:
            save_folder(self.run_dir / MODEL_FOLDER, pl_module.model, *parts)
        else:
            folder = self.run_dir / ADAPTER_FOLDER
            save_folder(folder, *_adapter_parts(pl_module, folder), *parts)


def _adapter_parts(pl_module: Any, folder: Path) -> tuple[LoraExport, AdapterRecord]:
    record = AdapterRecord.of(
        pl_module.model.config,
        base=Path(pl_module.model_folder),
        base_fingerprint=pl_module.base_fingerprint,
        folder=folder,
    )
    return LoraExport(pl_module.model, pl_module.lora_shape, record.base_model), record
