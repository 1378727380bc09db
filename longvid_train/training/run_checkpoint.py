"""The checkpoints of a run: Lightning's ``ModelCheckpoint`` with rolling ``last-step=<n>.ckpt`` files."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn

from longvid_train.errors import UserError
from longvid_train.training.boundary import find_boundary
from longvid_train.training.checkpoint_io import (
    CheckpointWriteError,
    check_space,
    publish,
    remove_checkpoint,
    remove_in_progress,
    save_queue,
)
from longvid_train.training.last_checkpoint import ORIGIN_KEY, by_age
from longvid_train.training.nan_guard import NonFiniteError, check_finite_state
from longvid_train.training.notices import notice
from longvid_train.training.ranks.guard import may_follow
from longvid_train.training.record import RECORD_FILE
from longvid_train.training.stop_signal import StopRequestedError
from longvid_train.training.strategies.zero_weights import full_size

LAST_NAME = "last-{step}"
LAST_PATTERN = "last-*.ckpt"
ADAM_MOMENTS = 2
"""Tensors AdamW keeps for each trained one; frozen weights are not in checkpoints."""


class RunCheckpoint(ModelCheckpoint):
    """Writes what ``ModelCheckpoint`` writes, and with ``save_last`` the newest states as ``last-step=<n>.ckpt``.

    A state saved under two names is one file on disk. On a failure the state of the last optimiser step is saved,
    except that nothing is saved when numbers are not finite, when the failure is that of writing a checkpoint, when it
    interrupted an optimiser step, or when it struck one of several ranks (the others cannot take part).

    Args:
        keep_last: how many ``last-step=<n>.ckpt`` to keep: 2, so that a damaged newest one does not end the run; -1
            keeps all.
        asynchronous: write in a background thread while training goes on. Training then waits for a copy in the host's
            memory, as large as the checkpoint (under ZeRO on each rank its part), and for the checkpoint before if that
            is not on disk yet. A write that failed ends the run between two steps.
        **options: those of ``ModelCheckpoint``.
    """

    def __init__(self, *, keep_last: int = 2, asynchronous: bool = False, **options: Any) -> None:
        if keep_last != -1 and keep_last < 1:
            raise UserError(f"checkpoint.keep_last is {keep_last}; it must be at least 1, or -1 to keep all")
        super().__init__(**options)
        self.keep_last = keep_last
        self.asynchronous = asynchronous
        self._start = 0

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return Path(str(self.dirpath))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose how files are written."""
        super().setup(trainer, pl_module, stage)
        save_queue(trainer).background = self.asynchronous

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clear what a killed run left half-written and check that a checkpoint fits on the disk.

        Raises:
            CheckpointWriteError: it does not.
        """
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        for path in remove_in_progress(self.folder):
            notice(f"removed {path}, left half-written by a run that was killed")
        self._start = _starts(Path(trainer.default_root_dir) / RECORD_FILE)
        self.folder.mkdir(parents=True, exist_ok=True)
        trained = [value for value in pl_module.parameters() if value.requires_grad]
        check_space(self.folder, (1 + ADAM_MOMENTS) * sum(full_size(value) * value.element_size() for value in trained))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The state of the start is on disk already, or the untrained one."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two steps if a write in the background failed.

        Raises:
            CheckpointWriteError: it did.
        """
        if find_boundary(trainer).at_boundary:
            save_queue(trainer).raise_failure()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait until the last state is on disk.

        Raises:
            CheckpointWriteError: a write in the background failed.
        """
        super().on_train_end(trainer, pl_module)
        save_queue(trainer).wait()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note which start of the run writes; refuse to write numbers that are not finite.

        Raises:
            NonFiniteError: a trained weight or a moment of the optimiser is not finite.
        """
        check_finite_state(trainer, pl_module)
        checkpoint[ORIGIN_KEY] = {"start": self._start}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save the state of the last optimiser step, where there is one to trust (validate and predict have none)."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        failure = save_queue(trainer).finish()
        # A writing thread also runs into it when another rank is gone, and the guard of the ranks tells why.
        if failure is not None and not (trainer.world_size > 1 and may_follow(failure)):
            notice(str(failure))
        agreed = trainer.world_size == 1 or isinstance(exception, StopRequestedError)
        if agreed and not isinstance(exception, (CheckpointWriteError, NonFiniteError)):
            self._save_boundary(trainer)
            save_queue(trainer).wait()
        if isinstance(exception, StopRequestedError):
            readable, _ = by_age(self.folder)
            exception.checkpoint = readable[0].path if readable else None

    def _save_boundary(self, trainer: pl.Trainer) -> None:
        boundary = find_boundary(trainer)
        if boundary.exact and self._should_save_on_exception(trainer):
            boundary.at_boundary = False
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, torch.Tensor]) -> None:
        """Publish the state of this step under the next free ``last`` name and prune older ones."""
        if not self.save_last:
            return
        target = self._free_name(trainer, monitor_candidates)
        self.last_model_path = str(target)
        saved = Path(self._last_checkpoint_saved) if self._last_checkpoint_saved else None
        if saved is not None and self._last_global_step_saved == trainer.global_step:
            if trainer.is_global_zero:
                save_queue(trainer).run(partial(publish, saved, target), creates=target)
            trainer.strategy.barrier("last checkpoint")
        else:
            self._save_checkpoint(trainer, str(target))
        if trainer.is_global_zero:
            save_queue(trainer).run(partial(self._prune, target))

    def file_exists(self, filepath: str | Path, trainer: pl.Trainer) -> bool:
        """Whether a checkpoint of that name is on rank 0's disk, or will be when what is being written is done."""
        promised = trainer.is_global_zero and save_queue(trainer).promises(Path(filepath))
        there = promised or (trainer.is_global_zero and Path(filepath).exists())
        return bool(trainer.strategy.reduce_boolean_decision(there, all=False))

    def _free_name(self, trainer: pl.Trainer, monitor_candidates: dict[str, torch.Tensor]) -> Path:
        """A name of this step that no file has: an earlier attempt of the run may have passed the step already."""
        path, version = self.format_checkpoint_name(monitor_candidates, LAST_NAME), self.STARTING_VERSION
        while self.file_exists(path, trainer):
            path = self.format_checkpoint_name(monitor_candidates, LAST_NAME, ver=version)
            version += 1
        return Path(path)

    def _prune(self, newest: Path) -> None:
        """Remove the oldest ``last`` files beyond ``keep_last``; damaged ones do not count and stay."""
        if self.keep_last == -1:
            return
        readable, _ = by_age(self.folder, LAST_PATTERN)
        older = [age.path for age in readable if age.path != newest]
        for path in older[self.keep_last - 1 :]:
            remove_checkpoint(path)


def _starts(record: Path) -> int:
    """How many times the run was started, this time included."""
    return len(json.loads(record.read_text(encoding="utf-8"))["starts"]) if record.exists() else 0
