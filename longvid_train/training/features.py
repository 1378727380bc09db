"""``longvid predict`` with `TowerFeatures`: features of all media of some manifests, written to the run folder."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from longvid_train.data.features.extraction import FeatureDataModule, FramePiece
from longvid_train.data.features.index import INDEX_FILE, merge_index
from longvid_train.data.features.writer import SHARD_BYTES, FeatureWriter
from longvid_train.errors import UserError
from longvid_train.models.llama_vid.head import pool_patches
from longvid_train.models.llama_vid.tower_file import load_vision_tower
from longvid_train.models.llama_vid.vision_tower import encode_in_chunks
from longvid_train.training.checkpoint import check_llama_vid_folder
from longvid_train.training.notices import notice
from longvid_train.training.threads import check_threads, use_threads
from longvid_train.types import ALL_PATCHES

PROGRESS_INTERVAL_S = 10.0


class TowerFeatures(pl.LightningModule):
    """Runs the vision tower of a LLaMA-VID checkpoint over a ``FeatureDataModule`` and writes shards and their index.

    Only the tower is loaded. A run that was stopped, also by SIGKILL, is continued by the same command: shards are
    whole or absent, and frames that a shard holds are not encoded again. Ranks and jobs (``data.shard``) write shards
    of their own; whichever ends merges all that are there.

    Args:
        model: folder of a LLaMA-VID checkpoint.
        shard_bytes: features kept in memory by each rank until they are written as one shard.
        torch_threads: CPU threads of each process; 0 keeps torch's own choice.
    """

    def __init__(self, model: str, shard_bytes: int = SHARD_BYTES, torch_threads: int = 0) -> None:
        super().__init__()
        check_threads(torch_threads)
        check_llama_vid_folder(model)
        self.model_folder = model
        self.shard_bytes = shard_bytes
        self.torch_threads = torch_threads
        self.tower: Any = None
        self._grid = ALL_PATCHES
        self._printed_s = self._started_s = 0.0

    def setup(self, stage: str) -> None:
        """Check the data module and open the writer.

        Raises:
            UserError: another command than predict, or another data module.
        """
        data = self.trainer.datamodule
        if stage != "predict" or not isinstance(data, FeatureDataModule):
            raise UserError(
                "TowerFeatures makes features: run longvid predict with data.class_path "
                "longvid_train.data.features.extraction.FeatureDataModule"
            )
        self._grid = data.storage.grid
        self._writer = FeatureWriter(data.run_dir, data.settings, data.writer_name, shard_bytes=self.shard_bytes)

    def configure_model(self) -> None:
        """Load the tower."""
        if self.tower is None:
            use_threads(self.torch_threads)
            self.tower = load_vision_tower(Path(self.model_folder))

    def on_predict_start(self) -> None:
        """Start the clock."""
        self._started_s = self._printed_s = time.monotonic()

    def predict_step(self, piece: FramePiece, batch_idx: int) -> None:
        """Encode a piece and hand it to the writer."""
        features = encode_in_chunks(self.tower, piece.pixel_values, len(piece.pixel_values))
        self._writer.add(piece.clip, piece.first_frame, piece.times_s, stored_part(features, self._grid))
        now = time.monotonic()
        if now - self._printed_s >= PROGRESS_INTERVAL_S:
            self._printed_s = now
            rate = self._writer.frames / (now - self._started_s)
            notice(f"features: {self._writer.frames} frames, {rate:.1f} frames/s")

    def on_predict_end(self) -> None:
        """Write the rest, wait for all ranks and merge the index."""
        self._writer.close()
        self.trainer.strategy.barrier("features")
        if self.trainer.is_global_zero:
            self._merge()
        self.trainer.strategy.barrier("index")

    def _merge(self) -> None:
        data = self.trainer.datamodule
        index = merge_index(data.run_dir)
        if index is None:
            raise UserError(f"{data.run_dir}: no features were made: every medium was skipped (the log names them)")
        missing = data.missing(index)
        size = sum(index.shards.values())
        notice(
            f"features: {data.media_count - len(missing)} of {data.media_count} media in {data.run_dir / INDEX_FILE}; "
            f"the folder holds {index.frame_count} frames of {len(index.entries)} clips, {size} bytes in "
            f"{len(index.shards)} shards"
        )
        if missing:
            job, jobs = data.shard
            why = "they could not be read" if jobs == 1 else f"this was job {job} of {jobs}, the others make them"
            first = f"first {missing[0].path} ({missing[0].where})"
            notice(f"features: {len(missing)} media are not there yet, {first}: {why}")


def check_tower_frozen(model: nn.Module, lora_targets: Sequence[str] = ()) -> None:
    """Refuse to train a tower whose output is read from disk; a model on the meta device will do.

    Args:
        model: with ``requires_grad`` as the stage leaves it.
        lora_targets: full paths of layers that get adapters.

    Raises:
        UserError: a parameter of the tower trains.
    """
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    of_tower = [name for name in (*trained, *lora_targets) if name.split(".")[0] == "vision_tower"]
    if of_tower:
        raise UserError(
            f"data.media.features is set, but the stage trains the vision tower ({len(of_tower)} of its weights, first "
            f"{of_tower[0]}): features are the output of a frozen tower; add '!vision_tower' to stage.trainable, or "
            "train from pixels"
        )


def stored_part(features: torch.Tensor, grid: int) -> torch.Tensor:
    """What is kept of ``(n, 1 + P, C)``: everything, or CLS and ``grid * grid`` average-pooled cells."""
    if grid == ALL_PATCHES:
        return features
    return torch.cat([features[:, :1], pool_patches(features[:, 1:], grid)], dim=1)
