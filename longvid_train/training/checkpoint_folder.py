"""Checkpoints of sharded runs: a folder that each rank writes its part of, under the rules of ``checkpoint_io``.

``NAME.ckpt/`` holds DeepSpeed's own files and ``index.json``, which says what wrote them and how large each must be. It
is written beside its place and gets its name, by a rename, when every file is on disk. Frozen weights are not in it.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import ProcessGroup

from longvid_train.errors import UserError
from longvid_train.files import write_json
from longvid_train.training.agreement import raise_on_all
from longvid_train.training.checkpoint_io import (
    AtomicCheckpointIO,
    CheckpointWriteError,
    damage,
    in_progress,
    sync_folder,
    write_complaint,
    write_durably,
)
from longvid_train.training.save_queue import SaveQueue
from longvid_train.training.step_split import StepSplit
from longvid_train.training.universal_checkpoint import load_universal

if TYPE_CHECKING:
    from longvid_train.training.engine_files import EngineFiles

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


class RunCheckpointIO(AtomicCheckpointIO):
    """`AtomicCheckpointIO` that also reads folders, as the file that a run without ZeRO would have written."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, file or folder; of a folder not the optimiser's states."""
        if Path(path).is_dir():
            return read_whole(Path(path))
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
        return checkpoint


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
        split: how the run divided its optimiser steps; None where another number of processes would make other steps.
    """

    start: int
    step: int
    zero_stage: int
    processes: int
    trained: dict[str, list[int]]
    files: dict[str, int]
    split: StepSplit | None = None


def save_engine(
    engine: Any,
    state: dict[str, Any],
    target: Path,
    *,
    start: int,
    stage: int,
    split: StepSplit | None,
    queue: SaveQueue,
    writers: ProcessGroup | None,
) -> None:
    """Write the state of a DeepSpeed engine to the new folder ``target``; all ranks call it.

    Args:
        engine: DeepSpeed's.
        state: what else a continued run needs; rank 0's is kept, at stage 3 each rank's own.
        target: whole at any moment or absent.
        start: which start of the run writes.
        stage: of ZeRO.
        split: how the run divides its optimiser steps.
        queue: of this rank; where it works in the background, it is given a snapshot, and never more than one.
        writers: over which the ranks' queues agree; None is the default group, for queues in the foreground.

    Raises:
        CheckpointWriteError: on all ranks, if ``target`` exists already or the disk has too little room. That a file
            of one of them could not be written is raised by ``queue``, on all ranks too.
    """
    from longvid_train.training.engine_files import handed_over

    queue.wait()
    first = torch.distributed.get_rank() == 0
    temporary = in_progress(target)
    trained = trained_shapes(engine.module)
    raise_on_all(_obstacle(target, temporary, trained) if first else None)
    with handed_over(engine, copied=queue.background) as files:
        engine.save_checkpoint(str(temporary), tag=TAG, client_state=state, exclude_frozen_parameters=True)
    index = FolderIndex(
        start=start,
        step=int(state["global_step"]),
        zero_stage=stage,
        processes=torch.distributed.get_world_size(),
        trained=trained,
        files={},
        split=split,
    )
    queue.run(partial(_write_together, files, target, index if first else None, writers), creates=target)


def _write_together(
    files: "EngineFiles", target: Path, index: FolderIndex | None, writers: ProcessGroup | None
) -> None:
    """Write this rank's files; when all ranks' are on disk, the one that has the index publishes the folder.

    Raises:
        CheckpointWriteError: on all ranks, if one could not write.
    """
    try:
        raise_on_all(_failure(target, partial(_write_files, files)), writers)
        publishing = None if index is None else partial(_publish, target, index)
        raise_on_all(None if publishing is None else _failure(target, publishing), writers)
    except CheckpointWriteError:
        if index is not None:
            shutil.rmtree(in_progress(target), ignore_errors=True)
        raise


def _failure(target: Path, work: Callable[[], None]) -> str | None:
    """Why ``work`` could not write to the disk, or None if it has."""
    try:
        work()
    except (OSError, RuntimeError) as error:
        return write_complaint(target, error)
    return None


def _write_files(files: "EngineFiles") -> None:
    for path, state in files:
        write_durably(state, path)


def _publish(target: Path, index: FolderIndex) -> None:
    """Give the folder, whose files are all on disk, its index and its name."""
    temporary = in_progress(target)
    files = {str(path.relative_to(temporary)): path.stat().st_size for path in _files(temporary)}
    write_json(temporary / INDEX_FILE, asdict(replace(index, files=files)))
    for path in (*_files(temporary), temporary / TAG, temporary):
        sync_folder(path)
    temporary.rename(target)
    sync_folder(target.parent)


def load_engine(engine: Any, source: Path, *, stage: int) -> dict[str, Any]:
    """Restore a DeepSpeed engine from a checkpoint folder; all ranks call it.

    Returns:
        What `save_engine` was given as ``state``.

    Raises:
        UserError: the folder was written by another stage or training.
        CheckpointWriteError: another number of processes wrote it, and it cannot be converted on its disk.
    """
    check_stage(source, stage)
    index = read_index(source)
    assert index is not None, "check_stage refuses a folder without one"
    _check_fits(index, source, trained=trained_shapes(engine.module))
    if index.processes != torch.distributed.get_world_size():
        return load_universal(engine, source, TAG)
    # Not strict for DeepSpeed, because frozen weights are left out; the names and shapes were just compared.
    _, state = engine.load_checkpoint(
        str(source), tag=TAG, load_module_strict=False, load_lr_scheduler_states=False, load_optimizer_states=True
    )
    assert isinstance(state, dict), "DeepSpeed returns the client state of a folder that exists"
    return state


def read_whole(folder: Path) -> dict[str, Any]:
    """Lightning's checkpoint in a folder, with its trained weights put together in float32.

    Args:
        folder: whole, with nothing in it that would run code (`folder_damage`): DeepSpeed unpickles it.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    first = sorted((folder / TAG).glob("*_model_states.pt"))[0]
    state: dict[str, Any] = torch.load(first, map_location="cpu", weights_only=False)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)
    return {**{name: value for name, value in state.items() if name != "module"}, "state_dict": dict(weights)}


def read_index(folder: Path) -> FolderIndex | None:
    """What a folder says of itself; None if it is no checkpoint folder or its index is broken."""
    try:
        values = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        split = values.get("split")
        return FolderIndex(**{**values, "split": None if split is None else StepSplit(**split)})
    except (OSError, ValueError, TypeError, AttributeError):
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


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != INDEX_FILE)
