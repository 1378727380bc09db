"""All ranks of a job end together, with one cause.

A rank that fails writes the cause down at once, before it gives up its connections. The others find it there, whatever
they ran into themselves: an error of a collective, which says that a connection is gone but not why, or nothing, while
they wait. The process that the user started prints the cause as the job's last line and exits with its status.
"""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from longvid_train.console import describe
from longvid_train.errors import UserError
from longvid_train.training.checkpoint_io import save_queue
from longvid_train.training.nan_guard import NonFiniteError
from longvid_train.training.ranks.board import FAILURE_FILE, JobFailure, RankBoard, own_state
from longvid_train.training.ranks.job import Job
from longvid_train.training.ranks.monitor import POLL_S, RankMonitor, Watchdog
from longvid_train.training.ranks.progress import Phase, Progress
from longvid_train.training.stop_signal import StopRequestedError

PATIENCE_S = 3.0
"""How long a rank whose error may follow from another rank's failure looks for it."""
TOGETHER = (StopRequestedError, NonFiniteError, KeyboardInterrupt, SystemExit)
"""What all ranks raise at the same place, or none."""


class JobFailedError(Exception):
    """The job's end as this process tells it.

    Attributes:
        line: what to print; None if another process prints it.
        status: exit status of this process.
    """

    def __init__(self, line: str | None, status: int) -> None:
        super().__init__(line)
        self.line, self.status = line, status


class RankGuard(Callback):
    """Marks this rank's progress and writes its failure down. It must be the first callback of all.

    Args:
        board: of the run.
        watchdog: what is done about a stall.
    """

    def __init__(self, board: RankBoard, watchdog: Watchdog) -> None:
        self.board, self.watchdog = board, watchdog
        self.monitor: RankMonitor | None = None
        self._progress = Progress(own_state(0))
        self._failure: JobFailure | None = None

    def begin(self, trainer: pl.Trainer) -> None:
        """Start to look after the job, before its other processes are launched."""
        job = Job(trainer)
        if trainer.world_size > 1:
            start = job.start()
            self.board.begin(start)
            job.announce(start)
        self._progress = Progress(own_state(trainer.global_rank))
        self.monitor = RankMonitor(job, self.board, self._progress, self.watchdog, save_queue(trainer))
        self.monitor.start()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The processes can reach each other: each learns who the others are."""
        if self.monitor is None or trainer.world_size == 1:
            return
        self.monitor.publish(now=True)
        trainer.strategy.barrier("ranks are known")
        self.monitor.know_peers()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a rank that makes no progress is reported."""
        self._mark(trainer, Phase.DATA, doing="waiting for the first batch")
        if self.monitor is not None:
            self.monitor.watches_progress = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch is there."""
        self._mark(trainer, Phase.FORWARD, micro_batch=trainer.fit_loop.epoch_loop.total_batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """The forward pass is done."""
        self._mark(trainer, Phase.BACKWARD)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The backward pass is done, and with it the exchange of gradients inside it."""
        self._mark(trainer, Phase.REDUCED)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """The optimiser begins."""
        self._mark(trainer, Phase.OPTIMIZER)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The micro-batch is done."""
        self._mark(trainer, Phase.DATA, micro_batch=trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """A validation batch is progress too."""
        self._mark(trainer, Phase.DATA, doing="validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch is done."""
        self._mark(trainer, Phase.DATA, doing="between two epochs")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last step is done: answers and export may take as long as they need."""
        if self.monitor is not None:
            self.monitor.watches_progress = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the failure down, before anything that could wait for another rank."""
        if isinstance(exception, KeyboardInterrupt) and self.monitor is not None:
            self.monitor.job.give_children_back()
        self.settle(trainer, exception)

    def settle(self, trainer: pl.Trainer, error: BaseException) -> JobFailure | None:
        """The job's cause, given what this rank raised; None for a single process and where all ranks raise alike."""
        if self.monitor is None or self.monitor.job.world_size == 1 or isinstance(error, TOGETHER):
            return None
        if self._failure is None:
            self.monitor.allow_ending()
            self._failure = self._cause(self.monitor, error)
        return self._failure

    def tell(self, trainer: pl.Trainer, error: Exception) -> None:
        """End this rank's part of a failed job; nothing for a single process and where all ranks raise alike.

        Raises:
            JobFailedError: what this process prints and exits with.
        """
        failure = self.settle(trainer, error)
        if failure is None:
            return
        assert self.monitor is not None, "settle finds a cause only for a rank that is looked after"
        if not self.monitor.tells(failure):
            raise JobFailedError(None, failure.status) from error
        self.monitor.job.end_children()
        raise JobFailedError(failure.line, failure.status) from error

    def end(self) -> None:
        """Leave the job."""
        if self.monitor is None:
            return
        if self.monitor.job.world_size > 1:
            self.board.publish(self._progress.end())
        self.monitor.job.withdraw()
        if self._failure is None:
            self.monitor.leave()

    def _cause(self, monitor: RankMonitor, error: BaseException) -> JobFailure:
        """Another rank's failure if there is one, else this rank's."""
        deadline_s = time.monotonic() + (PATIENCE_S if may_follow(error) else 0.0)
        while True:
            found = monitor.failure()
            if found is not None:
                return found
            if time.monotonic() >= deadline_s:
                break
            time.sleep(POLL_S / 5)
        mine = self._own_failure(error)
        if self.board.claim(mine):
            return mine
        return self.board.failure() or mine

    def _own_failure(self, error: BaseException) -> JobFailure:
        state, _ = self._progress.read()
        line, status = describe(error)
        if not isinstance(error, UserError):
            line = f"{state.name} failed at step {state.step}: {line} (its traceback is in {self.board.failure_file})"
        text = "".join(traceback.format_exception(error))
        return JobFailure(rank=state.rank, told_by=state.rank, line=line, status=status, traceback=text)

    def _mark(self, trainer: pl.Trainer, phase: Phase, **more: Any) -> None:
        self._progress.mark(phase, step=trainer.global_step, **more)


def may_follow(error: BaseException) -> bool:
    """Whether an error may be a collective's: gloo raises plain ``RuntimeError``, NCCL and the store their own."""
    return type(error) is RuntimeError or isinstance(error, torch.distributed.DistError)


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Run a job within; if it fails, all its processes end in bounded time and one of them says why.

    Raises:
        JobFailedError: the job failed for another reason than this process knows, or another process tells it.
    """
    guards = [callback for callback in trainer.callbacks if isinstance(callback, RankGuard)]
    for guard in guards:
        guard.begin(trainer)
    try:
        yield
    except Exception as error:
        for guard in guards:
            guard.tell(trainer, error)
        raise
    finally:
        for guard in guards:
            guard.end()


__all__ = ["FAILURE_FILE", "JobFailedError", "RankGuard", "ending_together"]
