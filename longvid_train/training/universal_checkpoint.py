"""A checkpoint folder of another number of processes: DeepSpeed's universal checkpoint.

DeepSpeed writes a file of each rank. Its converter takes them apart into one file of each parameter and moment, and its
engine cuts its own shards out of these. The converted copy stands beside the folder while it is read: the folder stays
as it was written, each of several jobs that read it has a copy of its own, and what a killed process left is removed by
the next that continues a run from there.
"""

import contextlib
import io
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from longvid_train.training.agreement import raise_on_all
from longvid_train.training.staging import remove_abandoned, staging_folder

UNIVERSAL_SUFFIX = ".universal"
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
    with ExitStack() as held_by_first:
        copy, obstacle = None, None
        if torch.distributed.get_rank() == 0:
            copy, obstacle = _converted(source, tag, held_by_first)
        raise_on_all(obstacle)
        shared = [copy]
        torch.distributed.broadcast_object_list(shared, src=0)
        assert shared[0] is not None, "without an obstacle there is a copy"
        yield shared[0]


def remove_abandoned_copies(checkpoints: Path) -> None:
    """Remove the universal forms in the folder ``checkpoints`` that nobody reads any more."""
    remove_abandoned(checkpoints, f".*{UNIVERSAL_SUFFIX}.*")


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


def _converted(source: Path, tag: str, stack: ExitStack) -> tuple[Path, str | None]:
    """The universal form of ``source``, there until ``stack`` ends, and what stood in its way."""
    target = source.with_name(f"{source.name}{UNIVERSAL_SUFFIX}")
    try:
        copy = stack.enter_context(staging_folder(target))
        return copy, _convert(source / tag, copy / tag)
    except OSError as error:
        return target, f"{target}: cannot write the converted checkpoint ({error.strerror}); mend the folder"


def _convert(source: Path, target: Path) -> str | None:
    """Write the universal form of DeepSpeed's folder; a line if the disk has too little room for it."""
    from deepspeed.checkpoint.ds_to_universal import main

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
    target.mkdir()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(settings)
    return None
