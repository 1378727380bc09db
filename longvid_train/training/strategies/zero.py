"""DeepSpeed's ZeRO (arXiv 1910.02054) through Lightning, on GPUs and on the CPU, with this project's loss.

The stages shard the optimiser (1), also the gradients (2), also the weights of the decoder's layers (3). What a run
promises holds under each: the loss is the mean over the supervised tokens of the step, numbers that are not finite
stop all ranks before the update, and checkpoints are whole or absent.

Why it looks as it does:

- **The mean over tokens.** DeepSpeed averages gradients over ranks while the backward pass runs, before the number of
  the step's tokens is known. It divides them by the *loss scale* in its step: that is set to the number of tokens, so
  that gradient norm, clipping and update see the gradient of the mean, and no gradient is touched.
- **Accumulation** is Lightning's: DeepSpeed is told which micro-batch ends a step, and is asked to step only then. Its
  own counter knows nothing of a last, shorter step of an epoch.
- **The same order on every rank.** Stages 2 and 3 reduce gradients in buckets that fill in the order of the backward
  pass, and the ranks' buckets must match: see ``SupervisedTraining.blank_visual_zero``.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.seed import reset_seed
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.plugins import Precision
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn
from torch.distributed import ProcessGroup

from longvid_train.errors import UserError
from longvid_train.training.checkpoint import restore_frozen
from longvid_train.training.checkpoint_folder import FolderIndex, load_engine, read_index, save_engine
from longvid_train.training.checkpoint_io import save_queue
from longvid_train.training.last_checkpoint import ORIGIN_KEY
from longvid_train.training.notices import notice
from longvid_train.training.step_split import StepSplit, check_same_rows, coming_split, resplit, split_of
from longvid_train.training.strategies.zero_config import Offload, check_zero_settings, zero_config
from longvid_train.training.strategies.zero_weights import (
    broadcast_replicated,
    forget_unused_renames,
    keep_whole,
    loading_in_shards,
    masters_in_place,
    without_hooks,
)

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
"""What the loss scale is free for; float16 needs it for itself."""


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed's ZeRO for ``longvid fit``; the other commands run on whole models, one on each rank.

    Args:
        stage: what is sharded over the ranks: 1 the optimiser's states, 2 also gradients, 3 also the weights of the
            language model's layers. Everything else of the model (tower, text decoder, projections, embeddings, head)
            stays whole on each rank at stage 3, since ranks pass it a different number of times a step.
        offload: what is kept in the host's memory: ``"none"``, ``"optimizer"``, or with stage 3 also
            ``"optimizer_and_weights"``.
        bucket_elements: gradients that are reduced, and weights that are gathered, at once.
        prefetch_elements: weights gathered ahead of their layer at stage 3.
        timeout_s: seconds a rank waits for the others in a collective before it fails.

    Attributes:
        check_settings: raises `UserError` for a setting outside its range, see `check_zero_settings`.
        continued_from: the checkpoint that ``fit`` will continue, set before it starts, so that what cannot be
            continued is refused before weights load.
    """

    strategy_name = "zero"

    def __init__(
        self,
        *,
        stage: Literal[1, 2, 3],
        offload: Offload = "none",
        bucket_elements: int = 50_000_000,
        prefetch_elements: int = 50_000_000,
        timeout_s: int = 1800,
    ) -> None:
        config = zero_config(stage, offload, bucket_elements=bucket_elements, prefetch_elements=prefetch_elements)
        super().__init__(config=config, timeout=timedelta(seconds=timeout_s))
        self.stage = stage
        # Not called here: what a constructor raises, jsonargparse reports as one of the types that did not fit.
        self.check_settings = partial(
            check_zero_settings,
            stage,
            offload,
            bucket_elements=bucket_elements,
            prefetch_elements=prefetch_elements,
            timeout_s=timeout_s,
        )
        self._reading: ExitStack | None = None
        self.continued_from: Path | None = None
        self._splits: tuple[StepSplit, StepSplit] | None = None
        self._writer_group: ProcessGroup | None = None

    @property
    def trains(self) -> bool:
        """Whether the command is ``fit``, as it is until a trainer says otherwise: the others make no engine."""
        module = self.lightning_module
        return module is None or bool(module.trainer.state.fn == TrainerFn.FITTING)

    @property
    def whole_model_on_each_rank(self) -> bool:
        """Whether every rank holds all weights between steps."""
        return self.stage < 3 or not self.trains

    @property
    def root_device(self) -> torch.device:
        """The rank's device; DeepSpeed wants one with a number, also on the CPU."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Start DeepSpeed's process group, or without training torch's own.

        Raises:
            UserError: a setting outside its range, a precision that needs the loss scale, or clipping that DeepSpeed
                does not know.
        """
        self.check_settings()
        trainer = self.lightning_module.trainer
        if trainer.precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision is {trainer.precision}; under ZeroStrategy it must be one of "
                f"{', '.join(PRECISIONS)} (float16 needs the loss scale that carries the number of tokens)"
            )
        if trainer.gradient_clip_algorithm == "value":
            raise UserError("trainer.gradient_clip_algorithm is 'value'; DeepSpeed clips by 'norm' only")
        if not self.trains and trainer.precision == "32-true":
            self.precision_plugin = Precision()  # DeepSpeed's converts batches, and cannot look into frozen dataclasses
        if self.trains and not isinstance(self.accelerator, CPUAccelerator):
            super().setup_environment()
            return
        if self.trains:
            use_cpu()
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Join the process group."""
        if not self.trains:
            DDPStrategy.setup_distributed(self)
            return
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._process_group_backend = "gloo"
        self._init_deepspeed_distributed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Let transformers build and load a model in shards at stage 3; it gathers one module at a time to fill it.

        Raises:
            UserError: the checkpoint to continue from cannot be continued on this number of processes.
        """
        if self.trains:
            self._compare_splits()
            self._init_config_if_needed()
        if self.whole_model_on_each_rank:
            yield
            return
        with loading_in_shards(self.config):
            yield
        forget_unused_renames(self.lightning_module.model)

    def setup(self, trainer: pl.Trainer) -> None:
        """Give the model and its optimiser to DeepSpeed; without training, put the whole model on the device."""
        model = self.lightning_module
        if not self.trains:
            DDPStrategy.setup(self, trainer)
            # DeepSpeed's engine computes in bfloat16 under both names of the precision.
            model.to(torch.float32 if trainer.precision == "32-true" else torch.bfloat16)
            return
        if self.whole_model_on_each_rank:
            super().setup(trainer)
            return
        broadcast_replicated(model)
        with without_hooks(model, self._sharded_parts()):
            super().setup(trainer)
        self._keep_whole()

    @property
    def handles_gradient_accumulation(self) -> bool:
        """False: Lightning counts micro-batches, see the module's text."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Nothing to hold back: DeepSpeed knows the boundaries of steps, and stages 2 and 3 reduce at every one."""
        yield

    def backward(
        self, closure_loss: torch.Tensor, optimizer: torch.optim.Optimizer | None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Run the backward pass of a micro-batch, with unscaled gradients."""
        engine = self.deepspeed_engine
        engine.set_gradient_accumulation_boundary(not self.lightning_module.trainer.fit_loop._should_accumulate())
        engine.optimizer.override_loss_scale(1.0)
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def average_gradient(self, scale: float) -> float:
        """Have the coming step multiply the gradient by ``scale``.

        Args:
            scale: turns DeepSpeed's gradient, a mean over ranks, into the wanted one.

        Returns:
            The L2 norm of the wanted gradient before clipping, over all ranks; infinity if it is not finite.
        """
        from deepspeed.runtime.utils import combine_grad_norm_groups

        optimizer = self.deepspeed_engine.optimizer
        if self.whole_model_on_each_rank:
            norm = optimizer.scaled_global_norm()
        else:
            norm = combine_grad_norm_groups(optimizer._get_norm_groups())
        optimizer.override_loss_scale(1.0 / scale)
        return float(norm) * scale

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """All weights on each rank, for ranks that generate or evaluate on their own; all ranks enter and leave."""
        if self.whole_model_on_each_rank:
            yield
            return
        from deepspeed.runtime.zero import unwrap_model_for_generation

        with without_hooks(self.lightning_module, self._sharded_parts()), unwrap_model_for_generation(self.model):
            yield
        self._keep_whole()

    def on_validation_start(self) -> None:
        """Gather all weights: ranks may validate different numbers of batches."""
        self._reading = ExitStack()
        self._reading.enter_context(self.whole_weights())
        super().on_validation_start()

    def on_validation_end(self) -> None:
        """Shard the weights again."""
        super().on_validation_end()
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module itself: the engine's forward pass would wait for the other ranks."""
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)

    @contextmanager
    def exported_weights(self) -> Iterator[None]:
        """Float32 weights of the whole model in place on rank 0, for writing; all ranks enter and leave.

        Trained weights are the optimiser's float32 ones, also where training computes in bfloat16.
        """
        with masters_in_place(self.lightning_module, keep=self.is_global_zero):
            yield

    def optimizer_state_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """This rank's float32 weights and moments, by name."""
        inner = self.deepspeed_engine.optimizer.optimizer
        for number, group in enumerate(inner.param_groups):
            for shard in group["params"]:
                yield f"weights of optimiser group {number}", shard
                for name, value in inner.state.get(shard, {}).items():
                    if torch.is_tensor(value):
                        yield f"optimiser state {name} of group {number}", value

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint folder, see `save_engine`; all ranks call it."""
        kept = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        start = int(checkpoint.get(ORIGIN_KEY, {}).get("start", 0))
        trainer = self.lightning_module.trainer
        save_engine(
            self.deepspeed_engine,
            kept,
            Path(self.broadcast(str(filepath))),
            start=start,
            stage=self.stage,
            split=split_of(trainer.train_dataloader, trainer),
            queue=save_queue(trainer),
            writers=self._writers(),
        )

    def _writers(self) -> ProcessGroup | None:
        """Over what the ranks' threads that write checkpoints agree; None where the thread that trains writes them."""
        if self._writer_group is None and save_queue(self.lightning_module.trainer).background:
            self._writer_group = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
        return self._writer_group

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimiser from a checkpoint folder and return the rest; without training, read weights.

        Raises:
            UserError: the folder is another stage's, or trained other parameters.
        """
        if not self.trains:
            checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)
            restore_frozen(checkpoint, self.lightning_module)
            return checkpoint
        state = load_engine(self.deepspeed_engine, Path(checkpoint_path), stage=self.stage)
        if not self.whole_model_on_each_rank:
            self._keep_whole()
        if self._splits is None:
            return state
        before, now = self._splits
        return resplit(state, before, now, data=type(self.lightning_module.trainer.datamodule).__qualname__)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the weights that `load_checkpoint` read; an engine has its own already."""
        if not self.trains:
            self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def _compare_splits(self) -> None:
        """See whether a checkpoint of other processes can be continued, before weights load."""
        source, trainer = self.continued_from, self.lightning_module.trainer
        index = None if source is None else read_index(source)
        if index is None or index.processes == self.world_size:
            return
        self._splits = compared_splits(index, coming_split(trainer), where=f"--ckpt_path {source}")
        if self.is_global_zero:
            notice(
                f"{source}: written by {index.processes} processes and continued by {self.world_size}, in DeepSpeed's "
                "universal form"
            )

    def _sharded_parts(self) -> list[nn.Module]:
        return [self.lightning_module.model.get_decoder().layers]

    def _keep_whole(self) -> None:
        keep_whole(self.deepspeed_engine, self.lightning_module, self._sharded_parts())


def compared_splits(index: FolderIndex, now: StepSplit | None, *, where: str) -> tuple[StepSplit, StepSplit]:
    """How a checkpoint's run divided its steps and how this one does.

    Raises:
        UserError: the steps would have other rows.
    """
    check_same_rows(index.split, now, where=where, processes=index.processes)
    assert index.split is not None, "check_same_rows refuses an order that cannot be divided anew"
    assert now is not None, "check_same_rows refuses an order that cannot be divided anew"
    return index.split, now


def use_cpu() -> None:
    """Tell DeepSpeed to use the CPU, without compiling its shared-memory collectives: gloo's are used.

    Raises:
        UserError: DeepSpeed has chosen another device already.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        raise UserError(
            f"DeepSpeed has chosen '{get_accelerator().device_name()}' but trainer.accelerator is cpu; set "
            "DS_ACCELERATOR=cpu in the environment, or trainer.accelerator to gpu"
        )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
