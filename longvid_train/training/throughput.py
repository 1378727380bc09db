"""Speed of training: tokens, frames and samples a second, model FLOPs utilisation, data wait and memory."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from longvid_train.generate.answer import peak_bytes
from longvid_train.training.base import SupervisedTraining
from longvid_train.training.data_wait import FetchTimer
from longvid_train.training.flops import PARTS
from longvid_train.training.peak_rate import PeakRate, peak_rate
from longvid_train.training.record import add_to_last_start
from longvid_train.training.strategies.sequence import counts_rows
from longvid_train.types import Batch

_COUNTS = ("samples", "tokens", "frames", "slots", *PARTS)


class Throughput(Callback):
    """Log the speed of every optimiser step under ``train/``; see ``docs/training.md``, "Seeing it run".

    A step's time runs from asking the loader for its first micro-batch to the end of its last, without validation,
    answers, checkpoints and logging in between. Counts are summed over micro-batches and ranks; times and memory are
    those of the slowest and fullest rank. The peak rate and its source go to ``run.json`` and to wandb's config.

    Args:
        clock: seconds, from any start.
        peak: what this rank's device could do; by default looked up or measured when training starts.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, peak: PeakRate | None = None) -> None:
        self._clock = clock
        self._given_peak = peak
        self._peak_flops_per_s: float | None = None
        self._window = _Window()
        self._timer: FetchTimer | None = None
        self._step = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn the peak rate and start to time the loader."""
        if not isinstance(pl_module, SupervisedTraining):
            return
        self._timer = FetchTimer(trainer.profiler, self._clock)
        trainer.profiler = self._timer
        self._window, self._step = _Window(), trainer.global_step
        peak = self._given_peak or peak_rate(pl_module.device, trainer.precision, self._clock)
        own = torch.tensor(0.0 if peak is None else peak.flops_per_s, dtype=torch.float64, device=pl_module.device)
        total = float(trainer.strategy.reduce(own, reduce_op="sum"))
        self._peak_flops_per_s = total or None
        facts = {
            "peak_flops_per_s": self._peak_flops_per_s,
            "peak_source": f"precision {trainer.precision} has no known peak" if peak is None else peak.source,
        }
        if trainer.is_global_zero:
            add_to_last_start(Path(trainer.default_root_dir), facts)
        for logger in trainer.loggers:
            logger.log_hyperparams(facts)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the trainer's own profiler back."""
        if self._timer is not None:
            trainer.profiler = self._timer.inner
            self._timer = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log the learning rate of each parameter group where they differ; ``train/lr`` is the first one's."""
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if len(set(rates)) > 1:
            pl_module.log_dict({f"train/lr/group_{index}": rate for index, rate in enumerate(rates)}, batch_size=1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the micro-batch; log when it ended an optimiser step."""
        if self._timer is None or not isinstance(pl_module, SupervisedTraining):
            return
        self._window.compute_s += self._clock() - self._timer.ended_s
        self._window.wait_s += self._timer.take()
        if counts_rows(trainer.strategy):
            self._window.add(pl_module.step_counts(batch))
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            pl_module.log_dict(self._metrics(trainer, pl_module.device), batch_size=1)
            self._window = _Window()

    def _metrics(self, trainer: pl.Trainer, device: torch.device) -> dict[str, float]:
        window, reduce = self._window, trainer.strategy.reduce
        sums = torch.tensor([window.counts[name] for name in _COUNTS], dtype=torch.float64, device=device)
        reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
        worst = [window.compute_s + window.wait_s, window.wait_s, peak_bytes(device), reserved]
        counts = dict(zip(_COUNTS, reduce(sums, reduce_op="sum").tolist(), strict=True))
        largest = reduce(torch.tensor(worst, dtype=torch.float64, device=device), reduce_op="max")
        step_s, wait_s, allocated, reserved = largest.tolist()
        metrics = speed_metrics(counts, step_s=step_s, wait_s=wait_s, peak_flops_per_s=self._peak_flops_per_s)
        metrics["peak_bytes"] = allocated
        if device.type == "cuda":
            metrics["peak_reserved_bytes"] = reserved
        return {f"train/{name}": value for name, value in metrics.items()}


def speed_metrics(
    counts: dict[str, float], *, step_s: float, wait_s: float, peak_flops_per_s: float | None
) -> dict[str, float]:
    """Compute the metrics of a step.

    Args:
        counts: of the step over all ranks: ``samples``, ``tokens``, ``frames``, ``slots`` (tokens and padding) and the
            FLOPs of each of ``longvid_train.training.flops.PARTS``, all 0 where a training does not count them: no
            metric of FLOPs is made then.
        step_s: seconds, the wait included.
        wait_s: seconds waiting for the loader.
        peak_flops_per_s: of all ranks together; None leaves the utilisation out.
    """
    flops = sum(counts[part] for part in PARTS)
    step_s = max(step_s, 1e-9)
    metrics = {
        "step_s": step_s,
        "data_wait_s": wait_s,
        "data_wait_share": wait_s / step_s,
        "tokens_per_s": counts["tokens"] / step_s,
        "frames_per_s": counts["frames"] / step_s,
        "samples_per_s": counts["samples"] / step_s,
        "padding_share": 1 - counts["tokens"] / counts["slots"],
    }
    if flops:
        metrics |= {"flops": flops, **{f"flops/{part}": counts[part] for part in PARTS if counts[part]}}
    if flops and peak_flops_per_s is not None:
        metrics["mfu"] = flops / (step_s * peak_flops_per_s)
        metrics["mfu_without_wait"] = flops / (max(step_s - wait_s, 1e-9) * peak_flops_per_s)
    return metrics


@dataclass
class _Window:
    """One optimiser step on this rank."""

    compute_s: float = 0.0
    wait_s: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))

    def add(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            self.counts[name] += count
