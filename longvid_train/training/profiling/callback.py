"""The callback behind ``profile:`` in a config."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import Strategy
from torch.profiler import ProfilerActivity

from longvid_train.errors import UserError
from longvid_train.files import atomic_path, write_json, write_text
from longvid_train.training.notices import notice
from longvid_train.training.profiling.marks import WINDOW, Part, PartMarks
from longvid_train.training.profiling.parts import collective_lengths_s, rank_parts_s
from longvid_train.training.profiling.report import as_json, table
from longvid_train.training.profiling.trace import RankTrace, read_trace
from longvid_train.training.profiling.verdict import judge

PROFILE_FOLDER = "profile"


@dataclass(frozen=True, kw_only=True)
class ProfileWindow:
    """Which optimiser steps are profiled.

    Attributes:
        after_steps: steps of this start of the run that come first: warm-up, full caches.
        steps: steps in the window. A trace of many is large.
    """

    after_steps: int = 10
    steps: int = 5


class ProfileSteps(Callback):
    """Says what a run waits for, from a ``torch.profiler`` trace of a few optimiser steps on every rank.

    A step reaches from the end of the step before it to its own end: callbacks, logging, checkpoints and validation in
    between are in it. Writes to ``<run_dir>/profile/``, with ``<steps>`` as in ``steps_11-15``: each rank's trace
    ``<steps>_rank<r>.trace.json.gz`` (for ui.perfetto.dev or chrome://tracing), the table ``<steps>.md`` and its
    numbers ``<steps>.json``; the verdict is printed. Before and behind the window nothing is wrapped, timed or
    recorded.

    Args:
        run_dir: folder of the run.
        window: the steps.

    Raises:
        UserError: the window has no step, or begins before the run does.
    """

    def __init__(self, run_dir: Path, window: ProfileWindow) -> None:
        for name, least in (("after_steps", 0), ("steps", 1)):
            if getattr(window, name) < least:
                raise UserError(f"profile.{name} is {getattr(window, name)}; it must be at least {least}")
        self._folder = run_dir / PROFILE_FOLDER
        self._window = window
        self._first = 0
        self._marks: PartMarks | None = None
        self._profiler: Any = None
        self._done = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a run that is too short for the window.

        Raises:
            UserError: ``trainer.max_steps`` comes before the window's end.
        """
        last = self._window.after_steps + self._window.steps
        if stage == "fit" and -1 < trainer.max_steps < last:
            raise UserError(
                f"the profile's window ends with step {last}, and trainer.max_steps is {trainer.max_steps}; lower "
                "profile.after_steps or profile.steps, or raise trainer.max_steps"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin now if nothing comes first."""
        self._first, self._done = trainer.global_step + self._window.after_steps, False
        if self._window.after_steps == 0:
            self._begin(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Begin behind the last step before the window, end behind its own last."""
        if self._marks is not None:
            if trainer.global_step == self._first + self._window.steps:
                self._end(trainer, self._window.steps)
        elif not self._done and trainer.global_step == self._first:
            self._begin(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Mark a validation."""
        if self._marks is not None:
            self._marks.begin_mark(Part.VALIDATION, Part.VALIDATION)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End its mark."""
        if self._marks is not None:
            self._marks.end_mark(Part.VALIDATION)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge a window that the run's end cut short; say so when it never began."""
        taken = trainer.global_step - self._first
        if self._marks is not None and taken > 0:
            notice(f"profile: the run ended after {taken} of the window's {self._window.steps} steps")
            self._end(trainer, taken)
        elif not self._done:
            self._stop(trainer)
            notice(
                f"profile: the run ended before a step of the window, which begins behind step {self._first}; lower "
                "profile.after_steps"
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let go of the trainer and of torch's profiler, of which a process has one."""
        self._stop(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        activities = [ProfilerActivity.CPU]
        if trainer.strategy.root_device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize()
        self._profiler = torch.profiler.profile(activities=activities)
        self._profiler.start()
        trainer.strategy.barrier("profile")
        self._marks = PartMarks(trainer.profiler)
        trainer.profiler = self._marks
        self._marks.begin_mark(WINDOW, WINDOW)

    def _end(self, trainer: pl.Trainer, steps: int) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize()
        assert self._marks is not None
        self._marks.end_mark(WINDOW)
        profiler = self._profiler
        self._stop(trainer)
        self._done = True
        name = f"steps_{self._first + 1}-{self._first + steps}"
        trace = self._exported(profiler, f"{name}_rank{trainer.global_rank}.trace.json.gz")
        own = rank_parts_s(trace, shortest_lengths_s(trainer.strategy, trace))
        vector = torch.tensor([own[part] for part in Part], dtype=torch.float64, device=device)
        gathered = trainer.strategy.all_gather(vector).reshape(trainer.world_size, len(Part)).tolist()
        ranks = [dict(zip(Part, values, strict=True)) for values in gathered]
        if not trainer.is_global_zero:
            return
        verdict = judge(ranks, steps=steps, workers=trainer.datamodule.loading.num_workers)
        write_json(
            self._folder / f"{name}.json",
            as_json(ranks, verdict, first_step=self._first + 1, steps=steps, device=str(device)),
        )
        write_text(self._folder / f"{name}.md", f"{table(ranks, steps)}\n{verdict.text}\n")
        notice(f"profile of steps {self._first + 1} to {self._first + steps}: {verdict.text}; {self._folder / name}.md")

    def _exported(self, profiler: Any, name: str) -> RankTrace:
        path = self._folder / name
        with atomic_path(path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        return read_trace(path)

    def _stop(self, trainer: pl.Trainer) -> None:
        if self._marks is None:
            return
        assert trainer.profiler is self._marks, "something wrapped the profiler during the window"
        trainer.profiler = self._marks.inner
        self._profiler.stop()
        self._marks = self._profiler = None


def shortest_lengths_s(strategy: Strategy, trace: RankTrace) -> NDArray[np.float64]:
    """``(n,)``: of each collective, the least of the ranks' `collective_lengths_s`; all ranks call it.

    Where the ranks do not show the same collectives, that of this rank, and a line says so: nothing counts as waiting.
    """
    names = float(zlib.crc32("\n".join(trace.collective_names).encode()))
    device = strategy.root_device
    low_high = strategy.reduce(torch.tensor([-names, names], dtype=torch.float64, device=device), reduce_op="max")
    if -low_high[0] != low_high[1]:
        notice("profile: the ranks' traces differ in their collectives; waiting for ranks is counted as communication")
        return collective_lengths_s(trace)
    negative = torch.tensor(-collective_lengths_s(trace), dtype=torch.float64, device=device)
    return -np.asarray(strategy.reduce(negative, reduce_op="max").cpu(), np.float64)
