"""Checkpoint files that are whole or absent: written beside their place, forced to disk, published once.

A file being written has the name of `in_progress`; it gets its own name by a hard link, which fails if the name is
taken. A process that is killed leaves the in-progress file, which the next start of the run removes. Lightning's own
writer copies through the system's temporary folder, does not force the bytes to disk and replaces what is there.
"""

import errno
import os
import shutil
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from longvid_train.errors import UserError
from longvid_train.training.save_queue import SaveQueue, snapshot

IN_PROGRESS_SUFFIX = ".in-progress"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})


class CheckpointWriteError(UserError):
    """A checkpoint could not be written; those written before are untouched."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint reader with `write_checkpoint` as its writer.

    Attributes:
        queue: what all writing and removing goes through; one that works in the background is given a snapshot, and
            never more than one: the next state waits until the one before is on disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue = SaveQueue()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, see `write_checkpoint`; ``storage_options`` are Lightning's, unused."""
        if self.queue.background:
            self.queue.wait()
            checkpoint = snapshot(checkpoint)
        self.queue.run(partial(write_checkpoint, checkpoint, Path(path)), creates=Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the checkpoint ``path``, file or folder, when what is being written is on disk."""
        self.queue.run(partial(remove_checkpoint, Path(path)))


def in_progress(target: Path) -> Path:
    """The name ``target`` has while it is written."""
    return target.with_name(f".{target.name}{IN_PROGRESS_SUFFIX}")


def write_checkpoint(checkpoint: dict[str, Any], target: Path) -> None:
    """Write ``checkpoint`` to the new file ``target``; at any moment ``target`` is whole and on disk, or absent.

    Raises:
        CheckpointWriteError: the disk or a quota is full, or the file cannot be written.
        FileExistsError: ``target`` exists already.
    """
    temporary = in_progress(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target.parent, tensor_bytes(checkpoint))
        write_durably(checkpoint, temporary)
        publish(temporary, target)
    except (OSError, RuntimeError) as error:
        raise CheckpointWriteError(write_complaint(target, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_durably(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` to the file ``path`` and force its bytes to disk."""
    with path.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())


def write_complaint(target: Path, error: OSError | RuntimeError) -> str:
    """What to tell of a checkpoint that could not be written because the disk or the folder did not take it.

    Raises:
        OSError, RuntimeError: ``error`` itself, if it has another cause or says that the name is taken.
    """
    # torch reports a failed write as a RuntimeError that hides the operating system's own.
    cause = next((link for link in _chain(error) if isinstance(link, OSError)), None)
    if cause is None or isinstance(cause, FileExistsError):
        raise error
    reason = cause.strerror or str(cause)
    remedy = "make room, or choose a --run_dir on another disk" if cause.errno in _FULL else "mend the folder"
    return (
        f"{target}: cannot write the checkpoint ({reason}); {remedy}, and continue with --ckpt_path last "
        "(earlier checkpoints are whole)"
    )


def save_queue(trainer: pl.Trainer) -> SaveQueue:
    """What the trainer's checkpoints are written through; of a trainer with another writer, an idle one."""
    writer = trainer.strategy.checkpoint_io
    return writer.queue if isinstance(writer, AtomicCheckpointIO) else SaveQueue()


def publish(source: Path, target: Path) -> None:
    """Give the whole file or folder ``source`` the new name ``target`` as well, durably and without copying its bytes.

    Raises:
        FileExistsError: ``target`` exists already.
    """
    if source.is_dir():
        _publish_folder(source, target)
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        copy = in_progress(target)
        if copy != source:
            shutil.copyfile(source, copy)
        copy.rename(target)
    sync_folder(target.parent)


def _publish_folder(source: Path, target: Path) -> None:
    if target.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    copy = in_progress(target)
    shutil.copytree(source, copy, copy_function=_link_or_copy)
    copy.rename(target)
    sync_folder(target.parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        shutil.copyfile(source, target)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Check that ``folder``'s disk has room for a checkpoint.

    Raises:
        CheckpointWriteError: it has less than ``needed_bytes``.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise CheckpointWriteError(
            f"{folder}: a checkpoint needs {_size(needed_bytes)} and the disk has {_size(free_bytes)} left; make room, "
            "or choose a --run_dir on another disk (checkpoints already there stay whole)"
        )


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(tensor_bytes(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return sum(tensor_bytes(part) for part in value)
    return 0


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or None if every byte is as it was written.

    torch.load alone does not see a flipped byte: it does not compare the checksums in the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return str(error)
    return None if broken is None else f"checksum of {broken} differs"


def remove_in_progress(folder: Path) -> list[Path]:
    """Remove what killed runs left half-written in ``folder`` and return it."""
    left = sorted(folder.glob(f".*{IN_PROGRESS_SUFFIX}"))
    for path in left:
        remove_checkpoint(path)
    return left


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from or while handling."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def sync_folder(folder: Path) -> None:
    """Force a folder's new entry to disk, or a file's bytes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
