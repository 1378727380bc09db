"""Processes that work for this one and end with it: interrupted, failed or killed, none of them goes on alone."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

GAP_S = 1.0
POLITE_TRIES = 10
"""A try ends one item of work, with its ``finally``; a worker may have one more in its hands."""


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """A process started within is not reached by Ctrl-C, which a terminal sends to all, from its first moment on.

    Here an interruption comes when the block ends.
    """
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and would unblock then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by what is started
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker(SpawnProcess):
    def start(self) -> None:
        with interrupts_blocked():
            super().start()


class _Context(SpawnContext):
    Process = _Worker


@contextmanager
def worker_pool(
    processes: int, setup: Callable[..., object] | None = None, setup_arguments: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Within, a pool of spawned processes; they are ended where an exception, an interruption among them, leaves it.

    Args:
        processes: at most so many.
        setup: called once in each process.
        setup_arguments: its arguments.
    """
    others = {*multiprocessing.active_children()}
    pool = ProcessPoolExecutor(processes, _Context(), initializer=_begin, initargs=(setup, setup_arguments))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        _end({*multiprocessing.active_children()} - others)
        raise
    finally:
        pool.shutdown()


def _end(workers: Iterable[BaseProcess]) -> None:
    left = [*workers]
    for _ in range(POLITE_TRIES):
        for worker in left:
            worker.terminate()
        deadline_s = time.monotonic() + GAP_S
        for worker in left:
            worker.join(max(0.0, deadline_s - time.monotonic()))
        left = [worker for worker in left if worker.is_alive()]
        if not left:
            return
    for worker in left:
        worker.kill()


def _begin(setup: Callable[..., object] | None, setup_arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup is not None:
        setup(*setup_arguments)


def _leave(number: int, frame: FrameType | None) -> None:
    """What is being written is removed on the way out."""
    sys.exit(128 + number)


def _end_with_parent() -> None:
    """A killed parent ends nobody, and closes no queue that its workers hold open themselves."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
