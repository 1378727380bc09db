"""Commands of ``longvid`` as processes of their own that do not each import torch anew, which takes seconds.

They are forked from a server (``multiprocessing``'s ``forkserver``) that has imported what they need, runs nothing and
has no threads: a command starts as from a shell, but at once.
"""

import multiprocessing
import os
import pkgutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from longvid_train.pool import interrupts_blocked

_ENTRY = "longvid_train.cli:main"
_PRELOADED = ("longvid_train.ablation.preloaded",)


class Launcher:
    """Starts commands; the server starts with the first.

    Args:
        preloaded: modules that the server imports.
    """

    def __init__(self, preloaded: Sequence[str] = _PRELOADED) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preloaded))

    def start(self, words: Sequence[str], environment: Mapping[str, str], log: Path, lock: int) -> BaseProcess:
        """Start ``longvid WORDS``.

        Args:
            words: of the command.
            environment: all of its variables.
            log: both of its streams are appended to.
            lock: an open file that the command keeps open: a lock on it lasts as long as the command.
        """
        process = self._context.Process(
            target=run_command, args=(list(words), dict(environment), str(log), Inherited(lock)), name=words[0]
        )
        with interrupts_blocked():  # the server starts with the first, and says what interrupts its imports
            process.start()
        return process


class Inherited:
    """An open file's descriptor as an argument of a process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.descriptor),)


def run_command(words: list[str], environment: dict[str, str], log: str, lock: Inherited) -> None:
    """In the new process: be ``longvid WORDS``, in a session of its own."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
    os.set_inheritable(lock.descriptor, True)
    sys.argv = ["longvid", *words]
    sys.exit(pkgutil.resolve_name(_ENTRY)(words))


def signal_group(process: BaseProcess, number: signal.Signals) -> None:
    """Signal a command and its own children, which it leads as a group; one that has ended is left alone."""
    assert process.pid is not None, "it was started"
    if not process.is_alive():
        return
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # it has not come to lead a group yet, or ended just now
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _received(descriptor: Any) -> Inherited:
    return Inherited(descriptor.detach())
