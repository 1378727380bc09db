"""Checkpoints of sharded runs: a folder that each rank writes its part of, under the rules of ``checkpoint_io``.

``NAME.ckpt/`` holds DeepSpeed's own files and ``index.json``, which says what wrote them and how large each must be. It
is written beside its place and gets its name, by a rename, when every file is on disk. Frozen weights are not in it.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from longvid_train.errors import UserError
from longvid_train.files import write_json
from longvid_train.training.checkpoint_io import CheckpointWriteError, damage, in_progress, sync_folder

INDEX_FILE = "index.json"
TAG = "checkpoint"
"""DeepSpeed's name of the folder in the folder."""
KNOWN_CLASSES = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)
"""What DeepSpeed's files hold beside tensors and plain values. Its loader would build anything that a file names."""


@dataclass(frozen=True, kw_only=True)
class FolderIndex:
    """What a checkpoint folder says of itself.

    Attributes:
        start: which start of the run wrote it (1 is the first).
        step: optimiser steps done.
        zero_stage: of the run.
        processes: of the run.
        trained: names of the parameters in it, with their shapes.
        files: size in bytes of each file, by its path in the folder.
    """

    start: int
    step: int
    zero_stage: int
    processes: int
    trained: dict[str, list[int]]
    files: dict[str, int]


def save_engine(engine: Any, state: dict[str, Any], target: Path, *, start: int, stage: int) -> None:
    """Write the state of a DeepSpeed engine to the new folder ``target``; all ranks call it.

    Args:
        engine: DeepSpeed's.
        state: what else a continued run needs; rank 0's is kept, at stage 3 each rank's own.
        target: whole at any moment or absent.
        start: which start of the run writes.
        stage: of ZeRO.

    Raises:
        CheckpointWriteError: on all ranks, if the disk has too little room.
        FileExistsError: ``target`` exists already.
    """
    first = torch.distributed.get_rank() == 0
    temporary = in_progress(target)
    trained = trained_shapes(engine.module)
    _agree(_obstacle(target, temporary, trained) if first else None)
    engine.save_checkpoint(str(temporary), tag=TAG, client_state=state, exclude_frozen_parameters=True)
    if first:
        files = {str(path.relative_to(temporary)): path.stat().st_size for path in _files(temporary)}
        index = FolderIndex(
            start=start,
            step=int(state["global_step"]),
            zero_stage=stage,
            processes=torch.distributed.get_world_size(),
            trained=trained,
            files=files,
        )
        write_json(temporary / INDEX_FILE, asdict(index))
        for path in (*_files(temporary), temporary / TAG, temporary):
            sync_folder(path)
        temporary.rename(target)
        sync_folder(target.parent)
    torch.distributed.barrier()


def load_engine(engine: Any, source: Path, *, stage: int) -> dict[str, Any]:
    """Restore a DeepSpeed engine from a checkpoint folder; all ranks call it.

    Returns:
        What `save_engine` was given as ``state``.

    Raises:
        UserError: the folder was written by another stage, number of processes or training.
    """
    check_stage(source, stage)
    index = read_index(source)
    assert index is not None, "check_stage refuses a folder without one"
    _check_fits(index, source, trained=trained_shapes(engine.module))
    # Not strict for DeepSpeed, because frozen weights are left out; the names and shapes were just compared.
    _, state = engine.load_checkpoint(
        str(source), tag=TAG, load_module_strict=False, load_lr_scheduler_states=False, load_optimizer_states=True
    )
    assert isinstance(state, dict), "DeepSpeed returns the client state of a folder that exists"
    return state


def read_index(folder: Path) -> FolderIndex | None:
    """What a folder says of itself; None if it is no checkpoint folder or its index is broken."""
    try:
        return FolderIndex(**json.loads((folder / INDEX_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def folder_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if every byte of its tensors is as it was written."""
    index = read_index(folder)
    if index is None:
        return f"no readable {INDEX_FILE}"
    for name, size in index.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        problem = _tensor_file_problem(path) if path.suffix == ".pt" else None
        if problem is not None:
            return f"{name}: {problem}"
    return None


def _tensor_file_problem(path: Path) -> str | None:
    problem = damage(path)
    if problem is not None:
        return problem
    strange = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - KNOWN_CLASSES)
    return f"it names {strange[0]}, which no checkpoint of longvid fit holds" if strange else None


def check_stage(source: Path, stage: int | None) -> None:
    """Refuse a checkpoint that a run under another stage of ZeRO wrote; nothing but its index is read.

    Args:
        source: file or folder.
        stage: of the run that continues; None without ZeRO.

    Raises:
        UserError: naming both.
    """
    index = read_index(source) if source.is_dir() else None
    written = None if index is None else index.zero_stage
    if written != stage:
        raise UserError(
            f"--ckpt_path {source}: written {_under(written)}, and trainer.strategy trains {_under(stage)}; continue "
            "with the strategy that wrote it"
        )


def _under(stage: int | None) -> str:
    return "without ZeRO" if stage is None else f"under ZeRO stage {stage}"


def trained_shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    """Names and whole shapes of the parameters that train."""
    return {
        name: list(getattr(value, "ds_shape", value.shape))
        for name, value in module.named_parameters()
        if value.requires_grad
    }


def _check_fits(index: FolderIndex, source: Path, *, trained: dict[str, list[int]]) -> None:
    processes = torch.distributed.get_world_size()
    if index.processes != processes:
        raise UserError(
            f"--ckpt_path {source}: written by {index.processes} processes, and this run has {processes}; continue "
            f"with {index.processes}"
        )
    names = index.trained.keys() | trained.keys()
    differing = sorted(name for name in names if index.trained.get(name) != trained.get(name))
    if differing:
        raise UserError(
            f"--ckpt_path {source}: of a run that trained other parameters ({len(differing)} differ, first "
            f"{differing[0]}); use that run's model.stage and model.lora, or start a new run without --ckpt_path"
        )


def _obstacle(target: Path, temporary: Path, trained: dict[str, list[int]]) -> str | None:
    """Why rank 0 cannot begin; clears what a failed attempt left."""
    if target.exists():
        return f"{target} exists already"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        needed = 3 * 4 * sum(int(torch.Size(shape).numel()) for shape in trained.values())
        free = shutil.disk_usage(target.parent).free
    except OSError as error:
        return f"{target}: cannot write the checkpoint ({error.strerror}); mend the folder (earlier ones are whole)"
    if free < needed:
        temporary.rmdir()
        return (
            f"{target.parent}: a checkpoint needs {needed / 1e6:.2f} MB and the disk has {free / 1e6:.2f} MB left; "
            "make room, or choose a --run_dir on another disk (checkpoints already there stay whole)"
        )
    return None


def _agree(obstacle: str | None) -> None:
    """Raise rank 0's obstacle on all ranks: one that raised alone would leave the others waiting."""
    shared = [obstacle]
    torch.distributed.broadcast_object_list(shared, src=0)
    if shared[0] is not None:
        raise CheckpointWriteError(shared[0])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != INDEX_FILE)
