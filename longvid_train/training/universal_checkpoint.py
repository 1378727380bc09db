"""A checkpoint folder of another number of processes: DeepSpeed's universal checkpoint.

DeepSpeed writes a file of each rank. Its converter takes them apart into one file of each parameter and moment, and its
engine cuts its own shards out of these. The converted copy stands beside the folder while it is read: the folder stays
as it was written, and what a killed process left is removed at the next start of the run.
"""

import contextlib
import io
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from longvid_train.training.agreement import raise_on_all
from longvid_train.training.checkpoint_io import in_progress

COPIES = 3
"""Times the folder's bytes that a conversion needs at once: fragments, merged tensors and the files that are kept."""


@contextmanager
def universal_copy(source: Path, tag: str) -> Iterator[Path]:
    """Within, the universal form of the checkpoint folder ``source``; all ranks enter and leave.

    Args:
        source: a whole folder, with nothing in it that would run code (`folder_damage`): DeepSpeed unpickles it.
        tag: name of DeepSpeed's folder in it, and in the copy.

    Raises:
        CheckpointWriteError: on all ranks, if the disk has too little room or cannot be written.
    """
    first = torch.distributed.get_rank() == 0
    copy = in_progress(source.with_name(f"{source.name}.universal"))
    raise_on_all(_convert(source / tag, copy / tag) if first else None)
    try:
        yield copy
    finally:
        if first:
            shutil.rmtree(copy, ignore_errors=True)


def load_universal(engine: Any, source: Path, tag: str) -> dict[str, Any]:
    """Restore a DeepSpeed engine from a folder of another number of processes; all ranks call it.

    Returns:
        What was saved beside the engine.
    """
    groups = engine.optimizer.optimizer.param_groups
    settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    with universal_copy(source, tag) as copy, _reads_universal(engine):
        _, state = engine.load_checkpoint(
            str(copy), tag=tag, load_module_strict=False, load_lr_scheduler_states=False, load_optimizer_states=True
        )
        torch.distributed.barrier()
    # At stage 3 DeepSpeed gives all groups the settings of the first, also its weight decay, and all their states one
    # tensor to count steps in, which each group's update would move.
    for group, own in zip(groups, settings, strict=True):
        group.update(own)
    for values in engine.optimizer.optimizer.state.values():
        values["step"] = deepcopy(values["step"])
    assert isinstance(state, dict), "DeepSpeed returns the client state of a folder that exists"
    return state


@contextmanager
def _reads_universal(engine: Any) -> Iterator[None]:
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False


def _convert(source: Path, target: Path) -> str | None:
    """Write the universal form of DeepSpeed's folder; what stood in the way, or None."""
    from deepspeed.checkpoint.ds_to_universal import main

    shutil.rmtree(target.parent, ignore_errors=True)
    needed = COPIES * sum(path.stat().st_size for path in source.iterdir())
    free = shutil.disk_usage(source).free
    if free < needed:
        return (
            f"{source.parent}: written by another number of processes; converting it needs {needed / 1e6:.2f} MB "
            f"beside it and the disk has {free / 1e6:.2f} MB left; make room, or continue with as many processes"
        )
    settings = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    try:
        target.mkdir(parents=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(settings)
    except OSError as error:
        return f"{target.parent}: cannot write the converted checkpoint ({error.strerror}); mend the folder"
    return None
