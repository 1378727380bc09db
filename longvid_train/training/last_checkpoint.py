"""Which checkpoint ``--ckpt_path last`` means: the newest whole one, by a clock that no copy or time zone can turn.

The order is (start of the run, optimiser step), both written into the checkpoint: a run that was continued from an
earlier checkpoint goes on from its own last state, not from the one it left.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longvid_train.errors import UserError
from longvid_train.training.checkpoint_folder import folder_damage, read_index
from longvid_train.training.checkpoint_io import damage

ORIGIN_KEY = "longvid_origin"
"""Where a checkpoint says which start of the run wrote it."""


@dataclass(frozen=True, order=True)
class CheckpointAge:
    """When a checkpoint was written.

    Attributes:
        start: which start of the run (1 is the first).
        step: optimiser steps done.
        path: the file; of two files with one state the name decides.
    """

    start: int
    step: int
    path: Path


def read_age(path: Path) -> CheckpointAge | None:
    """Read a checkpoint's age without its tensors; None if the file or folder cannot be read."""
    if path.is_dir():
        index = read_index(path)
        return None if index is None else CheckpointAge(index.start, index.step, path)
    try:
        content: dict[str, Any] = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
        return CheckpointAge(int(content.get(ORIGIN_KEY, {}).get("start", 0)), int(content["global_step"]), path)
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, pickle.UnpicklingError):
        return None


def by_age(folder: Path, pattern: str = "*.ckpt") -> tuple[list[CheckpointAge], list[Path]]:
    """Readable checkpoints of ``folder``, newest first, and the unreadable ones."""
    ages = {path: read_age(path) for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")}
    readable = sorted((age for age in ages.values() if age is not None), reverse=True)
    return readable, [path for path, age in ages.items() if age is None]


def newest_whole(folder: Path, report: Callable[[str], None]) -> Path:
    """The newest checkpoint whose every byte is right.

    Args:
        folder: of the checkpoints.
        report: gets one line for each damaged file that is passed over.

    Raises:
        UserError: no file is whole.
    """
    readable, unreadable = by_age(folder)
    notes = [f"{path} is damaged (cut off or not a checkpoint)" for path in unreadable]
    for age in readable:
        problem = _damage(age.path)
        if problem is None:
            for note in notes:
                report(f"{note}; falling back to {age.path.name} of step {age.step}")
            return age.path
        notes.append(f"{age.path} is damaged ({problem})")
    raise UserError(f"{folder}: no checkpoint is whole ({'; '.join(notes)}); start a new run in another --run_dir")


def check_whole(path: Path) -> None:
    """Check a checkpoint that was named explicitly.

    Raises:
        UserError: it is damaged, or another kind of file (nothing in it is run to find out).
    """
    problem = _damage(path)
    if problem is not None:
        raise UserError(f"--ckpt_path {path}: the file is damaged ({problem}); use --ckpt_path last or an earlier file")
    if read_age(path) is None:
        raise UserError(
            f"--ckpt_path {path}: not a checkpoint of longvid fit; name a .ckpt file of RUN/checkpoints, or give "
            "weights as model.init_args.model"
        )


def _damage(path: Path) -> str | None:
    return folder_damage(path) if path.is_dir() else damage(path)
