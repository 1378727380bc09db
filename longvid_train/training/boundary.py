"""Optimiser-step boundaries: the only states of a run that can be continued exactly.

Between two boundaries the gradient of part of a step is in memory and nowhere else. A state that is written then (a
failure, a time-based checkpoint) must say "the last boundary": weights, optimiser and schedule have not moved since;
only the counters of loops and loader have, so a copy of those is kept. The loader's stand in two places of Lightning's
checkpoint, the loops' state and the data module's, and must agree: which one is restored is Lightning's choice.
"""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class StepBoundary(Callback):
    """Keeps the loop and loader counters of the last boundary and puts them into checkpoints written behind it.

    It must come before all callbacks that may fail or save.

    Attributes:
        exact: weights and optimiser are those of a boundary of this process: a state can be written.
        at_boundary: no micro-batch has begun since the boundary.
    """

    def __init__(self) -> None:
        self.exact = False
        self.at_boundary = False
        self._step = 0
        self._loops: dict[str, Any] = {}
        self._data: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin: nothing to save until the first step of this process is done."""
        self._step, self._loops = trainer.global_step, {}
        self.exact = False
        self.at_boundary = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch has begun."""
        self.at_boundary = False

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """From here to the end of the batch weights, optimiser and schedule are between two states."""
        self.exact = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Keep the counters if the batch ended a step."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._loops = trainer.fit_loop.state_dict()
            self._data = {} if trainer.datamodule is None else trainer.datamodule.state_dict()
            self.exact = self.at_boundary = True

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Behind a boundary, write the boundary's counters in the place of those of the moment."""
        if not self.at_boundary and self._loops:
            checkpoint["loops"]["fit_loop"] = self._loops
            if self._data:
                checkpoint[type(trainer.datamodule).__qualname__] = self._data


def find_boundary(trainer: pl.Trainer) -> StepBoundary:
    """The trainer's `StepBoundary`."""
    found = [callback for callback in trainer.callbacks if isinstance(callback, StepBoundary)]
    assert found, "a run that saves checkpoints needs a StepBoundary among its callbacks"
    return found[0]
