"""LLaMA-VID's training loop body: one class for the three stages (arXiv 2311.17043, Sec. 3.3 and Table 7)."""

import math
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler

from longvid_train.data.datamodule import ManifestDataModule
from longvid_train.errors import UserError
from longvid_train.models.fingerprint import fingerprint
from longvid_train.models.llama_vid.loading import llama_vid_skeleton
from longvid_train.models.lora import LoraShape
from longvid_train.training.batches import visual_keywords
from longvid_train.training.checkpoint import (
    check_llama_vid_folder,
    check_not_stretched,
    keep_trained,
    load_for_training,
    restore_frozen,
    stretch_window,
)
from longvid_train.training.features import check_tower_frozen
from longvid_train.training.gradients import gradient_norms
from longvid_train.training.lora import LoraSettings, apply_lora, plan_lora
from longvid_train.training.nan_guard import MicroBatch, check_finite_step
from longvid_train.training.notices import notice
from longvid_train.training.optimizer import OptimizerConfig, build_adamw, cosine_schedule, follow_config
from longvid_train.training.randomness import seed_micro_batch
from longvid_train.training.stages import Stage, apply_stage, frozen_modules, recompute_frozen_layers
from longvid_train.types import Batch


class LlamaVidTraining(pl.LightningModule):
    """Trains a LLaMA-VID checkpoint on the batches of a data module.

    The gradient of an optimiser step is that of the loss averaged over all supervised tokens of the step, whatever the
    split into micro-batches (``accumulate_grad_batches``) and DDP ranks. Random numbers of micro-batch ``i`` depend on
    the seed, the rank and ``i`` only, so a resumed run repeats an uninterrupted one.

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
    ) -> None:
        super().__init__()
        if not 0 <= warmup_ratio < 1:
            raise UserError(f"warmup_ratio is {warmup_ratio}; it must be at least 0 and below 1, e.g. 0.03")
        if rope_scaling < 1:
            raise UserError(f"rope_scaling is {rope_scaling}; it must be 1 (off) or a factor above 1, e.g. 16")
        if torch_threads < 0:
            raise UserError(f"torch_threads is {torch_threads}; it must be 0 (torch's choice) or a thread count")
        check_llama_vid_folder(model)
        self.model_folder = model
        self.stage = stage
        self.optimizer_config = optimizer
        self.warmup_ratio = warmup_ratio
        self.rope_scaling = rope_scaling
        self.gradient_checkpointing = gradient_checkpointing
        self.torch_threads = torch_threads
        self.lora = lora
        self.lora_shape: LoraShape | None = None
        self.base_fingerprint = ""
        self.model: Any = None
        self.processor: Any = None
        self._window = _StepWindow()
        self._seed = 0
        self._fitting = False
        self._steps_per_epoch = 0

    def setup(self, stage: str) -> None:
        """Check, before weights load, what trains, that the strategy keeps the loss exact and an epoch fills a step.

        Raises:
            UserError: a pattern that does not fit the architecture, a strategy that owns the gradients, or fewer
                batches an epoch than ``accumulate_grad_batches``.
        """
        self._fitting = stage == "fit"
        skeleton = llama_vid_skeleton(self.model_folder)
        if self.lora is None:
            apply_stage(skeleton, self.stage)
        else:
            self.lora_shape = plan_lora(skeleton, self.stage, self.lora)
        if self._fitting:
            data = self.trainer.datamodule
            if isinstance(data, ManifestDataModule) and data.uses_features:
                check_tower_frozen(skeleton, self.lora_shape.target_modules if self.lora_shape else ())
            check_strategy(self.trainer.strategy)
            batches = len(self.trainer.datamodule.train_dataloader())
            limit = self.trainer.limit_train_batches
            batches = (
                min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
            )
            check_accumulation(batches, self.trainer.accumulate_grad_batches)
            self._steps_per_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)

    def configure_model(self) -> None:
        """Load the checkpoint and freeze what the stage does not train. Lightning calls it before it restores a
        checkpoint."""
        if self.model is not None:
            return
        if self.torch_threads:
            torch.set_num_threads(self.torch_threads)
        self.base_fingerprint = fingerprint(Path(self.model_folder))
        self.model, self.processor = load_for_training(self.model_folder)
        if self.rope_scaling != 1:
            check_not_stretched(self.model, self.rope_scaling)
            if not self._fitting:
                stretch_window(self.model, self.rope_scaling)
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        if self.lora is None:
            self.stage_report = apply_stage(self.model, self.stage)
        else:
            self.lora_shape = plan_lora(self.model, self.stage, self.lora)
            self.stage_report = apply_lora(self.model, self.lora_shape)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains: the rest is the base model's folder, named by its fingerprint."""
        keep_trained(checkpoint, self, self.base_fingerprint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen parameters back before Lightning loads the state dict, which it does strictly.

        Raises:
            UserError: the base model's folder has changed, or the checkpoint is of a run that trained something else.
        """
        restore_frozen(checkpoint, self, self.base_fingerprint)

    def train(self, mode: bool = True) -> "LlamaVidTraining":
        """Switch to training mode, all but the wholly frozen modules, which stay in eval mode."""
        super().train(mode)
        self._hold_frozen_in_eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over the trainable parameters and a cosine schedule over the run's optimiser steps."""
        total = total_steps(self._steps_per_epoch, self.trainer.max_epochs, self.trainer.max_steps)
        optimizer = build_adamw(self.model, self.optimizer_config)
        schedule = cosine_schedule(optimizer, warmup_ratio=self.warmup_ratio, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Start in training mode (a model loaded from disk is in eval mode) with the seed of the run."""
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self._window = _StepWindow()
        self.train()

    def on_train_start(self) -> None:
        """Stretch the window and let the optimiser of a continued run follow this run's config.

        Callbacks come first: the answers "before" are those of the checkpoint as it came.
        """
        if self.rope_scaling != 1:
            stretch_window(self.model, self.rope_scaling)
        for change in follow_config(
            self.optimizers(use_pl_optimizer=False), self.lr_schedulers(), self.optimizer_config
        ):
            notice(change)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make the step's random numbers a function of seed, rank and micro-batch, and keep frozen modules in eval
        mode."""
        self._hold_frozen_in_eval()
        seed_micro_batch(self._seed, self.global_rank, self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss SUMMED over the micro-batch's supervised tokens; ``on_before_optimizer_step`` divides the
        gradient."""
        loss, tokens = self._summed_loss(batch)
        self._window.add(batch, self.global_rank, float(loss.detach()), tokens)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the accumulated gradient into that of the mean over the step's supervised tokens on all ranks, and log
        the step.

        Lightning divided each micro-batch's loss by ``accumulate_grad_batches`` and DDP averaged over ranks: both are
        undone.

        Raises:
            UserError: the step has no supervised token.
            NonFiniteError: the loss or the gradient is not finite; on every rank.
        """
        totals = self.trainer.strategy.reduce(self._window.totals(self.device), reduce_op="sum")
        loss_sum, supervised = (float(value) for value in totals)
        if supervised == 0:
            raise UserError(
                f"no supervised token in samples {', '.join(self._window.sample_ids())}; every sample needs an answer"
            )
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / supervised
        gradients = [value.grad for value in self.parameters() if value.grad is not None]
        for gradient in gradients:
            gradient.mul_(scale)
        norms = gradient_norms(self.model)
        norm = math.hypot(*norms.values())
        check_finite_step(self.trainer, self._window.micro_batches, loss_sum=loss_sum, gradient_norm=norm)
        self.log("train/loss", loss_sum / supervised, prog_bar=True, batch_size=1)
        self.log_dict(
            {
                "train/lr": optimizer.param_groups[0]["lr"],
                "train/grad_norm": norm,
                **{f"train/grad_norm/{part}": value for part, value in norms.items()},
                "train/supervised_tokens": supervised,
            },
            batch_size=1,
        )
        self._window = _StepWindow()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val/loss``, the loss averaged over the supervised tokens of the whole held-out set."""
        self._evaluation_step("val/loss", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``test/loss`` like ``val/loss``."""
        self._evaluation_step("test/loss", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the sample ids of the batch with their summed loss and token count."""
        loss, tokens = self._summed_loss(batch)
        return {"sample_ids": batch["sample_ids"], "loss_sum": float(loss), "supervised_tokens": tokens}

    def _evaluation_step(self, name: str, batch: Batch) -> None:
        loss, tokens = self._summed_loss(batch)
        if tokens:
            self.log(
                name, loss / tokens, batch_size=tokens, on_step=False, on_epoch=True, sync_dist=True, prog_bar=True
            )

    def _summed_loss(self, batch: Batch) -> tuple[torch.Tensor, int]:
        if "labels" not in batch["text"]:
            raise UserError(f"samples {', '.join(batch['sample_ids'])} have no labels; train on rows with answers")
        loss, tokens = self.model.loss_sum(**batch["text"], **visual_keywords(batch))
        return loss, int(tokens)

    def _hold_frozen_in_eval(self) -> None:
        if self.model is not None:
            for _, module in frozen_modules(self.model):
                module.eval()
            if self.gradient_checkpointing and self.training:
                recompute_frozen_layers(self.model)


def check_strategy(strategy: Strategy) -> None:
    """Refuse strategies whose gradients ``on_before_optimizer_step`` cannot rescale (DeepSpeed, FSDP).

    Raises:
        UserError: the strategy is neither single-device nor DDP.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        raise UserError(
            f"trainer.strategy is {type(strategy).__name__}: it owns the gradients, and the loss would no longer be "
            "averaged over supervised tokens; use 'auto' or 'ddp'"
        )


def check_accumulation(batches: int, accumulate: int) -> None:
    """Refuse an accumulation window longer than an epoch: no step would ever be whole.

    Raises:
        UserError: ``batches < accumulate``.
    """
    if batches < accumulate:
        raise UserError(
            f"an epoch has {batches} batches on each rank, fewer than accumulate_grad_batches = {accumulate}; "
            "lower accumulate_grad_batches or data.loading.batch_size, or add training rows"
        )


def total_steps(steps_per_epoch: int, max_epochs: int | None, max_steps: int) -> int:
    """Optimiser steps of a run; -1 (or ``None``) is no limit, as in Lightning.

    ``Trainer.estimated_stepping_batches`` is no substitute: in ``configure_optimizers`` it builds the training loader
    before a checkpoint's loader state is known, and Lightning then never restores that state.

    Raises:
        UserError: neither limit is set, or one of them allows no step.
    """
    limits = [max_steps] if max_steps != -1 else []
    limits += [steps_per_epoch * max_epochs] if max_epochs not in (None, -1) else []
    if not limits or min(limits) < 1:
        raise UserError("the run has no steps or no end; set --trainer.max_epochs or --trainer.max_steps to 1 or more")
    return min(limits)


class _StepWindow:
    """Counts over the micro-batches of one optimiser step on this rank."""

    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.supervised = 0
        self.micro_batches: list[MicroBatch] = []

    def add(self, batch: Batch, rank: int, loss_sum: float, supervised: int) -> None:
        self.loss_sum += loss_sum
        self.supervised += supervised
        self.micro_batches.append(MicroBatch(rank=rank, loss_sum=loss_sum, sample_ids=batch["sample_ids"]))

    def sample_ids(self) -> list[str]:
        return [sample_id for one in self.micro_batches for sample_id in one.sample_ids]

    def totals(self, device: torch.device) -> torch.Tensor:
        return torch.tensor([self.loss_sum, self.supervised], dtype=torch.float64, device=device)
