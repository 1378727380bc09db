"""What every training on manifests shares: one LightningModule body for LLaMA-VID's stages and for the backbones."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn

from longvid_train.errors import UserError
from longvid_train.generate.decoding import AnswerDecoder, Generated
from longvid_train.generate.generation import generate_answers
from longvid_train.generate.options import GenerationOptions
from longvid_train.models.fingerprint import fingerprint
from longvid_train.models.lora import LoraShape
from longvid_train.training.activations import ActivationMemory, apply_activation_memory, check_activation_memory
from longvid_train.training.checkpoint import check_base, keep_trained, restore_frozen
from longvid_train.training.gradients import average_gradient
from longvid_train.training.lora import LoraSettings, apply_lora, plan_lora
from longvid_train.training.nan_guard import MicroBatch, check_finite_step
from longvid_train.training.notices import notice
from longvid_train.training.optimizer import OptimizerConfig, build_adamw, cosine_schedule, follow_config
from longvid_train.training.randomness import seed_micro_batch
from longvid_train.training.stages import Stage, apply_stage, frozen_modules, recompute_frozen_layers
from longvid_train.training.strategies.sequence import SequenceZeroStrategy, check_sequence_parallel, shard_of
from longvid_train.training.strategies.sequence_shard import SequenceShard, shard_loss_sum
from longvid_train.training.strategies.zero import ZeroStrategy
from longvid_train.training.threads import check_threads, use_threads
from longvid_train.types import Batch


class SupervisedTraining(pl.LightningModule, ABC):
    """Trains a checkpoint on the supervised tokens of a data module's batches.

    The gradient of an optimiser step is that of the loss averaged over all supervised tokens of the step, whatever the
    split into micro-batches (``accumulate_grad_batches``), ranks (DDP or DeepSpeed's ZeRO) and parts of sequences.
    Random numbers of micro-batch ``i`` depend on the seed, the rank and ``i`` only, so a resumed run repeats an
    uninterrupted one.

    Subclasses say how the checkpoint is read and what a batch's loss is.

    Args:
        model: folder of the checkpoint.
        stage: what trains.
        optimizer: AdamW's settings.
        warmup_ratio: share of the optimiser steps spent warming up, from 0 up to but without 1.
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
        warmup_ratio: float,
        gradient_checkpointing: bool,
        torch_threads: int,
        lora: LoraSettings | None,
        activations: ActivationMemory,
    ) -> None:
        super().__init__()
        if not 0 <= warmup_ratio < 1:
            raise UserError(f"warmup_ratio is {warmup_ratio}; it must be at least 0 and below 1, e.g. 0.03")
        check_threads(torch_threads)
        self.model_folder = model
        self.stage = stage
        self.optimizer_config = optimizer
        self.warmup_ratio = warmup_ratio
        self.gradient_checkpointing = gradient_checkpointing
        self.torch_threads = torch_threads
        self.lora = lora
        self.activations = activations
        self.lora_shape: LoraShape | None = None
        self.base_fingerprint = ""
        self.model: Any = None
        self.processor: Any = None
        self._window = _StepWindow()
        self._seed = 0
        self._fitting = False
        self._steps_per_epoch = 0

    @abstractmethod
    def skeleton(self) -> nn.Module:
        """The model on torch's meta device."""

    @abstractmethod
    def load(self) -> tuple[Any, Any]:
        """The model with its weights, and the processor of its batches."""

    @abstractmethod
    def batch_loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the losses of a batch's supervised tokens (float32 scalar) and their number (int64 scalar)."""

    @abstractmethod
    def step_counts(self, batch: Batch) -> dict[str, int]:
        """What a micro-batch asks for, by the names of ``longvid_train.training.throughput``."""

    @abstractmethod
    def export_parts(self) -> Sequence[Any]:
        """What stands beside the weights in an exported folder: anything with ``save_pretrained``."""

    @abstractmethod
    def blank_visual_zero(self) -> torch.Tensor:
        """0, made by the visual side from blank frames, so that each of its trained parameters gets a gradient of 0.

        ZeRO reduces gradients while the backward pass runs and needs them in the same order on every rank: a
        micro-batch of text alone must leave the same graph as one with frames.
        """

    def check_data(self, skeleton: nn.Module) -> None:
        """Refuse a data module this training cannot use; called in ``setup`` of ``fit``, before weights load.

        Args:
            skeleton: with ``requires_grad`` as the stage leaves it.

        Raises:
            UserError: naming what does not go together.
        """

    def answers(self, batch: Batch, decoder: AnswerDecoder, options: GenerationOptions) -> list[Generated]:
        """Answer every row of a batch of open prompts, padded on the left."""
        return generate_answers(self.model, decoder, batch, options)

    def setup(self, stage: str) -> None:
        """Check, before weights load, what trains, that the strategy keeps the loss exact and an epoch fills a step.

        Raises:
            UserError: a pattern that does not fit the architecture, a strategy that owns the gradients, or fewer
                batches an epoch than ``accumulate_grad_batches``.
        """
        self._fitting = stage == "fit"
        skeleton: Any = self.skeleton()
        if self.lora is None:
            apply_stage(skeleton, self.stage)
        else:
            self.lora_shape = plan_lora(skeleton, self.stage, self.lora)
        if self._fitting:
            self.check_data(skeleton)
            check_strategy(self.trainer.strategy)
            check_activation_memory(
                self.activations,
                self.trainer.strategy,
                self.lora,
                gradient_checkpointing=self.gradient_checkpointing,
            )
            if isinstance(self.trainer.strategy, SequenceZeroStrategy):
                config = skeleton.get_decoder().config
                size = self.trainer.strategy.sequence_parallel_size
                check_sequence_parallel(size, config)
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
        use_threads(self.torch_threads)
        self.base_fingerprint = fingerprint(Path(self.model_folder))
        # Building a model in shards draws numbers that loading it whole does not; LoRA's start must not depend on it.
        with torch.random.fork_rng(devices=[]):
            self.model, self.processor = self.load()
        if self.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        if self.lora is None:
            self.stage_report = apply_stage(self.model, self.stage)
        else:
            self.lora_shape = plan_lora(self.model, self.stage, self.lora)
            self.stage_report = apply_lora(self.model, self.lora_shape)
        apply_activation_memory(self.model.get_decoder(), self.activations)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains: the rest is the base model's folder, named by its fingerprint."""
        keep_trained(checkpoint, self, self.base_fingerprint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen parameters back before Lightning loads the state dict, which it does strictly.

        A ZeRO run's weights are not in ``checkpoint``: its strategy compared and restored them.

        Raises:
            UserError: the base model's folder has changed, or the checkpoint is of a run that trained something else.
        """
        check_base(checkpoint, self.base_fingerprint)
        if not isinstance(self.trainer.strategy, ZeroStrategy):
            restore_frozen(checkpoint, self)

    def train(self, mode: bool = True) -> "SupervisedTraining":
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
        """Let the optimiser of a continued run follow this run's config."""
        for change in follow_config(self.trainer.optimizers[0], self.lr_schedulers(), self.optimizer_config):
            notice(change)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make the step's random numbers a function of seed, rank and micro-batch, and keep frozen modules in eval
        mode."""
        self._hold_frozen_in_eval()
        seed_micro_batch(self._seed, self.global_rank, self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss SUMMED over the micro-batch's supervised tokens; ``on_before_optimizer_step`` divides the
        gradient."""
        if self._shard is not None:
            self._shard.check_same_rows(batch["text"]["input_ids"], batch["sample_ids"])
        blank = self._blank_visual_zero(batch)
        loss, tokens = self._summed_loss(batch)
        self._window.add(batch, self.global_rank, float(loss.detach()), tokens)
        return loss if blank is None else loss + blank

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the accumulated gradient into that of the mean over the step's supervised tokens on all ranks, and log
        the step.

        Lightning divided each micro-batch's loss by ``accumulate_grad_batches`` and DDP or DeepSpeed averaged over
        ranks: both are undone.

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
        norm, norms = average_gradient(self.trainer.strategy, self.model, scale)
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

    @property
    def _shard(self) -> SequenceShard | None:
        """The part of each sequence that this rank trains on, where sequences are divided and a step is under way."""
        return shard_of(self.trainer.strategy)

    def _shard_loss(
        self,
        shard: SequenceShard,
        embeds: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss over this rank's part of rows with their visual tokens in place; see `shard_loss_sum`."""
        decoder, lm_head = self.model.get_decoder(), self.model.get_output_embeddings()
        return shard_loss_sum(shard, decoder, lm_head, embeds, labels, position_ids)

    def _evaluation_step(self, name: str, batch: Batch) -> None:
        loss, tokens = self._summed_loss(batch)
        if tokens:
            self.log(
                name, loss / tokens, batch_size=tokens, on_step=False, on_epoch=True, sync_dist=True, prog_bar=True
            )

    def _summed_loss(self, batch: Batch) -> tuple[torch.Tensor, int]:
        if "labels" not in batch["text"]:
            raise UserError(f"samples {', '.join(batch['sample_ids'])} have no labels; train on rows with answers")
        loss, tokens = self.batch_loss(batch)
        return loss, int(tokens)

    def _blank_visual_zero(self, batch: Batch) -> torch.Tensor | None:
        """Made before the loss: the backward pass then comes to the visual side last, as it does with frames."""
        if batch["visual"] is not None or not isinstance(self.trainer.strategy, ZeroStrategy):
            return None
        return self.blank_visual_zero()

    def _hold_frozen_in_eval(self) -> None:
        if self.model is not None:
            for _, module in frozen_modules(self.model):
                module.eval()
            if self.gradient_checkpointing and self.training:
                recompute_frozen_layers(self.model)


def check_strategy(strategy: Strategy) -> None:
    """Refuse strategies whose gradients ``on_before_optimizer_step`` cannot rescale (FSDP, Lightning's DeepSpeed).

    Raises:
        UserError: the strategy is neither single-device nor DDP nor `ZeroStrategy`.
    """
    # Lightning's DeepSpeed strategy is a DDPStrategy.
    known = isinstance(strategy, SingleDeviceStrategy | DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)
    if not known and not isinstance(strategy, ZeroStrategy):
        raise UserError(
            f"trainer.strategy is {type(strategy).__name__}: it owns the gradients, and the loss would no longer be "
            "averaged over supervised tokens; use 'auto', 'ddp' or, for DeepSpeed, --config "
            "configs/deepspeed/zero2.yaml"
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
