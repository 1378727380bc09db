"""LLaMA-VID's training: one class for the three stages (arXiv 2311.17043, Sec. 3.3 and Table 7)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.errors import UserError
from longvid_train.models.llama_vid.loading import llama_vid_skeleton
from longvid_train.training.activations import ActivationMemory
from longvid_train.training.base import SupervisedTraining
from longvid_train.training.batches import visual_keywords
from longvid_train.training.checkpoint import (
    check_llama_vid_folder,
    check_not_stretched,
    load_for_training,
    stretch_window,
)
from longvid_train.training.features import check_tower_frozen
from longvid_train.training.flops import count_flops, trains
from longvid_train.training.lora import LoraSettings
from longvid_train.training.optimizer import OptimizerConfig
from longvid_train.training.stages import Stage
from longvid_train.training.work import work_of
from longvid_train.types import ALL_PATCHES, Batch


class LlamaVidTraining(SupervisedTraining):
    """Trains a LLaMA-VID checkpoint on the batches of a data module; see `SupervisedTraining`.

    Args:
        model: folder of a LLaMA-VID checkpoint (model and processor, as ``fit`` exports it).
        stage: what trains.
        optimizer: AdamW's settings.
        warmup_ratio: share of the optimiser steps spent warming up, from 0 up to but without 1 (the paper: 0.03).
        rope_scaling: divide rotary positions by this factor and widen the language window by it (stage 3 of the paper:
            16); written into the exported checkpoint's own text config. 1 leaves the checkpoint as it is.
        gradient_checkpointing: recompute the activations of each layer in the backward pass, also of frozen layers that
            gradients pass through.
        torch_threads: CPU threads of each process; 0 keeps torch's own choice.
        lora: low-rank adapters in layers that the stage does not train; the run then exports an adapter folder.
        activations: what else is done about the language model's activations.
    """

    def __init__(
        self,
        model: str,
        stage: Stage,
        optimizer: OptimizerConfig,
        warmup_ratio: float = 0.03,
        rope_scaling: float = 1.0,
        gradient_checkpointing: bool = False,
        torch_threads: int = 0,
        lora: LoraSettings | None = None,
        activations: ActivationMemory = ActivationMemory(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            model, stage, optimizer, warmup_ratio, gradient_checkpointing, torch_threads, lora, activations
        )
        if rope_scaling < 1:
            raise UserError(f"rope_scaling is {rope_scaling}; it must be 1 (off) or a factor above 1, e.g. 16")
        check_llama_vid_folder(model)
        self.rope_scaling = rope_scaling

    def skeleton(self) -> nn.Module:
        """See `SupervisedTraining`."""
        return llama_vid_skeleton(self.model_folder)

    def load(self) -> tuple[Any, Any]:
        """See `SupervisedTraining`; a run that does not fit starts with the stretched window."""
        model, processor = load_for_training(self.model_folder)
        if self.rope_scaling != 1:
            check_not_stretched(model, self.rope_scaling)
            if not self._fitting:
                stretch_window(model, self.rope_scaling)
        return model, processor

    def check_data(self, skeleton: nn.Module) -> None:
        """Refuse features of a tower that trains."""
        data = self.trainer.datamodule
        if isinstance(data, ManifestDataModule) and data.uses_features:
            check_tower_frozen(skeleton, self.lora_shape.target_modules if self.lora_shape else ())

    def on_train_start(self) -> None:
        """Stretch the window, then as `SupervisedTraining`.

        Callbacks come first: the answers "before" are those of the checkpoint as it came.
        """
        if self.rope_scaling != 1:
            stretch_window(self.model, self.rope_scaling)
        super().on_train_start()

    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SupervisedTraining`."""
        shard, visual = self._shard, visual_keywords(batch)
        if shard is None:
            loss: tuple[torch.Tensor, torch.Tensor] = self.model.loss_sum(**batch["text"], **visual)
            return loss
        if "pixel_values" in visual and not trains(self.model.vision_tower):
            visual["visual_features"] = shard.gathered(self.model.encode_frames, visual.pop("pixel_values"))
        text = batch["text"]
        embeds = self.model.multimodal_embeddings(text["input_ids"], **visual)
        return self._shard_loss(shard, embeds, text["labels"], text.get("position_ids"))

    def blank_visual_zero(self) -> torch.Tensor:
        """See `SupervisedTraining`: one black frame, guided by one token."""
        config, device = self.model.config, self.device
        pixels = torch.zeros(1, 3, config.image_size, config.image_size, dtype=self.model.dtype, device=device)
        one = torch.ones(1, 1, dtype=torch.long, device=device)
        grids = torch.full((1,), ALL_PATCHES, dtype=torch.long)
        features = self.model.encode_frames(pixels)
        tokens = self.model.visual_tokens(features, torch.tensor([[0, 1, 0]]), grids, torch.zeros_like(one), one)
        return tokens.float().sum() * 0.0

    def step_counts(self, batch: Batch) -> dict[str, int]:
        """See `SupervisedTraining`."""
        work = work_of(batch, self.model.config)
        return {
            "samples": work.samples,
            "tokens": work.tokens,
            "frames": work.shown_frames,
            "slots": work.slots,
            **{part: flops.total for part, flops in count_flops(self.model, work).items()},
        }

    def export_parts(self) -> Sequence[Any]:
        """The processor, with the template and the content grids of the run."""
        data = self.trainer.datamodule
        return [
            self.processor.trained_with(
                template=data.template.name,
                image_content_grid=data.conversation.image_content_grid,
                video_content_grid=data.conversation.video_content_grid,
            )
        ]
