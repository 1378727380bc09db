"""A trace of a run, exact enough to prove that two runs are the same: one JSON line a micro-batch, of SHA-256 sums.

Lightning's ``trainer.callbacks`` takes it:

  --trainer.callbacks+=longvid_train.training.trace.StateTrace --trainer.callbacks.path runs/a/trace.jsonl

A continued run appends; a line cut off by a kill is left out when the trace is read. Rank ``r`` other than 0 writes
``trace_rank<r>.jsonl`` beside it.
"""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from longvid_train.training.strategies.zero import ZeroStrategy
from longvid_train.training.strategies.zero_weights import is_sharded
from longvid_train.types import Batch

TracedLine = dict[str, Any]


class StateTrace(Callback):
    """Append the state behind every micro-batch to ``path``; it reads all weights, so not for long runs.

    Each line has ``micro_batch`` (counted over the run), ``step``, ``epoch``, ``sample_ids``, and sums of the batch's
    tensors, Python's, numpy's and torch's generators, the parameters, the optimiser and the schedule.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Append one line."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {
            "micro_batch": trainer.fit_loop.epoch_loop.total_batch_idx,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "sample_ids": batch["sample_ids"],
            "batch": digest({"text": batch["text"], "visual": batch["visual"]}),
            "python_rng": digest(random.getstate()),
            "numpy_rng": digest(list(np.random.get_state())),
            "torch_rng": digest(torch.get_rng_state()),
            "parameters": digest({name: _held(value) for name, value in pl_module.named_parameters()}),
            "optimizer": digest(_optimizer_state(trainer)),
            "schedule": digest([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]),
        }
        with rank_trace(self.path, trainer.global_rank).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def rank_trace(path: Path, rank: int) -> Path:
    """The trace of a rank, where rank 0's is ``path``."""
    return path if rank == 0 else path.with_name(f"{path.stem}_rank{rank}{path.suffix}")


def read_trace(path: Path) -> list[TracedLine]:
    """The whole lines of a trace in the order they were written; none if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if _is_whole(line)]


def differences(whole: list[TracedLine], interrupted: list[TracedLine]) -> list[str]:
    """Where an interrupted run was not the uninterrupted one; an empty list proves that it was.

    Args:
        whole: trace of the uninterrupted run.
        interrupted: trace of all starts of the other run, one after the other; micro-batches behind the checkpoint that
            a start continued from stand in it more than once.

    Returns:
        One line for each field of each micro-batch that differs, and for each micro-batch that only one run has.
    """
    expected = {line["micro_batch"]: line for line in whole}
    found = [
        f"micro-batch {line['micro_batch']}: {field} differs"
        for line in interrupted
        for field in line
        if line["micro_batch"] in expected and line[field] != expected[line["micro_batch"]][field]
    ]
    seen = {line["micro_batch"] for line in interrupted}
    found += [f"micro-batch {number}: missing" for number in sorted(expected.keys() - seen)]
    return found + [f"micro-batch {number}: not in the whole run" for number in sorted(seen - expected.keys())]


def digest(value: Any) -> str:
    """SHA-256 of nested dicts, lists, tuples, tensors, arrays and plain values, exact to the bit."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()[:16]


def _feed(found: "hashlib._Hash", value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, np.ndarray):
        found.update(f"{value.dtype}{value.shape}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            found.update(f"{key}:".encode())
            _feed(found, value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            _feed(found, part)
            found.update(b",")
    else:
        found.update(repr(value).encode())


def _held(value: Any) -> torch.Tensor:
    """A parameter, or this rank's shard of it: when a sharded one is whole is DeepSpeed's choice, as it goes."""
    if not is_sharded(value):
        whole: torch.Tensor = value
        return whole
    shard: torch.Tensor = value.ds_tensor.flatten()
    used = value.ds_numel - torch.distributed.get_rank() * shard.numel()  # behind it the last ranks' shards are padded
    return shard[: max(0, used)]


def _optimizer_state(trainer: pl.Trainer) -> Any:
    """All of it; under ZeRO this rank's tensors, since DeepSpeed's own description holds objects too."""
    if isinstance(trainer.strategy, ZeroStrategy):
        return list(trainer.strategy.optimizer_state_tensors())
    return [optimizer.state_dict() for optimizer in trainer.optimizers]


def _is_whole(line: str) -> bool:
    """A kill between two writes of one line can leave the start of it in front of the next."""
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True
