"""NaN and infinity: every rank stops, the samples are named, and nothing that is not finite is written.

The loss of one rank is looked at by all: they share the sum of the step's losses, and an infinity or NaN stays one in
the sum. A rank that raised alone would leave the others waiting in a collective.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from longvid_train.data.dataset import ManifestDataset
from longvid_train.files import write_json
from longvid_train.training.checkpoint_io import save_queue
from longvid_train.training.last_checkpoint import by_age
from longvid_train.training.notices import notice
from longvid_train.training.strategies.zero import ZeroStrategy

NAMED_SAMPLES = 8
"""Samples named in the message; the report file names all."""
NO_CHECKPOINT = "none"


class NonFiniteError(RuntimeError):
    """A loss, a gradient, a weight or a moment of the optimiser is not finite; the message says where to look."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one micro-batch contributed to a step.

    Attributes:
        rank: the process that computed it.
        loss_sum: sum of its tokens' losses.
        sample_ids: its samples.
    """

    rank: int
    loss_sum: float
    sample_ids: list[str]


def check_finite_step(
    trainer: pl.Trainer, micro_batches: Sequence[MicroBatch], *, loss_sum: float, gradient_norm: float
) -> None:
    """Stop if a step's loss or gradient norm is not finite. Call it on every rank with the same two numbers.

    Writes ``nonfinite_step_<n>.json`` to the run folder, with every sample of the step where the loss is finite and of
    the micro-batches at fault where it is not.

    Args:
        trainer: the trainer of the run.
        micro_batches: this rank's share of the step.
        loss_sum: over all ranks.
        gradient_norm: of the gradient over all ranks.

    Raises:
        NonFiniteError: one of them is NaN or infinite.
    """
    if math.isfinite(loss_sum) and math.isfinite(gradient_norm):
        return
    what, value = ("gradient norm", gradient_norm) if math.isfinite(loss_sum) else ("loss", loss_sum)
    gathered = _gathered(list(micro_batches), trainer.world_size)
    at_fault = [one for one in gathered if not math.isfinite(one.loss_sum)] or gathered
    places = locate_samples(trainer.datamodule.dataset("train"), [name for one in at_fault for name in one.sample_ids])
    report = Path(trainer.default_root_dir) / f"nonfinite_step_{trainer.global_step}.json"
    if trainer.is_global_zero:
        write_json(
            report,
            {
                "what": what,
                "value": str(value),
                "step": trainer.global_step,
                "epoch": trainer.current_epoch,
                "micro_batches": [{**asdict(one), "loss_sum": str(one.loss_sum)} for one in at_fault],
                "samples": places,
            },
        )
    raise NonFiniteError(
        f"the {what} is {value} at step {trainer.global_step} for samples {_listed(places)} (all in {report}); look at "
        f"these samples, or continue with a lower --model.optimizer.lr. Last good checkpoint: {_last_good(trainer)}"
    )


def check_finite_state(trainer: pl.Trainer, module: torch.nn.Module) -> None:
    """Stop before a weight or a moment of the optimiser that is not finite reaches a file.

    Raises:
        NonFiniteError: the first such tensor, by name; under ZeRO on all ranks, whichever has it.
    """
    zero = isinstance(trainer.strategy, ZeroStrategy)
    tensors = trainer.strategy.optimizer_state_tensors() if zero else _trained_tensors(trainer.optimizers, module)
    broken = next((name for name, value in tensors if not _finite(value)), None)
    if zero and trainer.strategy.reduce_boolean_decision(broken is not None, all=False):
        broken = broken or "a tensor of another rank"
    if broken is not None:
        raise NonFiniteError(_broken_state(trainer, broken))


def locate_samples(dataset: ManifestDataset, sample_ids: Sequence[str]) -> list[str]:
    """Name samples as ``file:line (sample 'id')``, in the order of ``sample_ids``; one id may stand in two files."""
    wanted: dict[str, list[str]] = {sample_id: [] for sample_id in sample_ids}
    for index in range(len(dataset)):
        manifest, row = dataset.locate(index)
        sample_id = dataset.sample(index).id
        if sample_id in wanted:
            wanted[sample_id].append(f"{manifest.path}:{manifest.line_number(row)}")
    return [f"{' or '.join(places)} (sample '{sample_id}')" for sample_id, places in wanted.items()]


def _broken_state(trainer: pl.Trainer, what: str) -> str:
    return (
        f"{what} is not finite after step {trainer.global_step}: nothing was saved. Continue with a lower "
        f"--model.optimizer.lr from the last good checkpoint: {_last_good(trainer)}"
    )


def _last_good(trainer: pl.Trainer) -> str:
    """The newest checkpoint on disk: all of them were checked before they were written."""
    failure = save_queue(trainer).finish()
    if failure is not None:
        notice(str(failure))
    folder = Path(str(getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir))
    readable, _ = by_age(folder)
    return str(readable[0].path) if readable else NO_CHECKPOINT


def _listed(places: Sequence[str]) -> str:
    more = len(places) - NAMED_SAMPLES
    return ", ".join(places[:NAMED_SAMPLES]) + (f" and {more} more" if more > 0 else "")


def _gathered(own: list[MicroBatch], world_size: int) -> list[MicroBatch]:
    """Micro-batches of all ranks."""
    if world_size == 1:
        return own
    parts: list[list[MicroBatch]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(parts, own)
    return [one for part in parts for one in part]


def _trained_tensors(
    optimizers: Iterable[torch.optim.Optimizer], module: torch.nn.Module
) -> Iterator[tuple[str, torch.Tensor]]:
    """Trained weights and their moments, by name."""
    for name, value in module.named_parameters():
        if value.requires_grad:
            yield f"weight {name}", value
        states: list[dict[str, Any]] = [optimizer.state.get(value, {}) for optimizer in optimizers]
        for state in states:
            for moment, tensor in state.items():
                if torch.is_tensor(tensor):
                    yield f"optimiser state {moment} of {name}", tensor


def _finite(value: torch.Tensor) -> bool:
    return bool(torch.isfinite(value).all())
