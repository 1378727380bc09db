"""File operations of checkpoints, one behind the other: at once, or in a background thread while training goes on.

Saving in the background writes a *snapshot*: a copy of the state in the host's memory, taken between two optimiser
steps. What a checkpoint promises stays: it is whole or absent, and an older one is removed only when the newer one is
on disk, because removal waits in the same queue. A failure ends the queue: nothing behind it runs.
"""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch


class SaveQueue:
    """Runs operations in order.

    Args:
        background: run them in a thread; else each is done, or has raised, when `run` returns.
    """

    def __init__(self, *, background: bool = False) -> None:
        self.background = background
        self._thread: ThreadPoolExecutor | None = None
        self._newest: Future[None] | None = None
        self._promised: dict[Path, Future[None]] = {}

    def run(self, work: Callable[[], object], *, creates: Path | None = None) -> None:
        """Run ``work`` behind what was given before; in the background its failure is raised by the next `wait`.

        Args:
            work: the operation. It may hold a snapshot; nothing keeps it when it is done.
            creates: the path that exists afterwards.
        """
        if not self.background:
            work()
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._newest = self._thread.submit(_behind, self._newest, work)
        self._promised = {path: future for path, future in self._promised.items() if not future.done()}
        if creates is not None:
            self._promised[creates] = self._newest

    def promises(self, path: Path) -> bool:
        """Whether an operation that is not done yet creates ``path``."""
        return path in self._promised and not self._promised[path].done()

    def wait(self) -> None:
        """Wait until all is done.

        Raises:
            Exception: what the first failed operation raised; a failure is raised once.
        """
        failure = self.finish()
        if failure is not None:
            raise failure

    def raise_failure(self) -> None:
        """`wait` if all is done, else nothing: for a look between two steps."""
        if self._newest is not None and self._newest.done():
            self.wait()

    def finish(self, timeout_s: float | None = None) -> BaseException | None:
        """Wait until all is done and return the first failure, which is forgotten then.

        Raises:
            TimeoutError: it is not done within ``timeout_s``.
        """
        if self._newest is None:
            return None
        failure = self._newest.exception(timeout_s)
        self._newest = None
        self._promised.clear()
        return failure


def _behind(before: "Future[None] | None", work: Callable[[], object]) -> None:
    """Do ``work`` unless what came before it failed: then fail alike."""
    if before is not None:
        before.result()
    work()


def snapshot(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Copy a checkpoint so that training can go on while the copy is written.

    Tensors are copied to the host's memory, each storage once: tensors that share one still do, and the file has the
    bytes that writing ``checkpoint`` itself would give. Everything else is deep-copied.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    copies = {id(tensor): _copy(tensor, storages) for tensor in _tensors(checkpoint)}
    return copy.deepcopy(checkpoint, copies)


def _copy(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    storage: Any = tensor.untyped_storage()
    if storage.data_ptr() not in storages or storage.nbytes() == 0:
        storages[storage.data_ptr()] = storage.cpu() if storage.device.type != "cpu" else storage.clone()
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(storages[storage.data_ptr()], tensor.storage_offset(), tensor.size(), tensor.stride())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
