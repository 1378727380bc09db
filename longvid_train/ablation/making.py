"""Steps made on disk, each once: a process of ``longvid`` a step, continued where an earlier one stopped."""

import json
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from longvid_train.ablation.kinds import OUTPUT
from longvid_train.ablation.launching import Launcher, signal_group
from longvid_train.ablation.locks import step_lock
from longvid_train.ablation.plan import Step
from longvid_train.files import write_json
from longvid_train.training.record import now

STEP_FILE, DONE_FILE, LOG_FILE, LOCK_FILE = "step.json", "done.json", "log.txt", ".lock"
GRACE_S = 120.0
"""Seconds a stopped command has to save what it did; then it is killed."""


class StepFailedError(Exception):
    """A step's command ended with a status other than 0."""


class StoppedError(Exception):
    """The ablation is being stopped."""


@dataclass(frozen=True)
class Facts:
    """Of this start, for the records.

    Attributes:
        git_commit: of the working folder.
        versions: of the packages that decide a result.
        hardware: it runs on.
    """

    git_commit: str | None
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]


class Maker:
    """Makes steps and what they need.

    Args:
        out: folder of the ablation.
        facts: recorded with each step.
        say: gets one line when a step starts, ends or fails.
        launcher: starts their commands.
    """

    def __init__(self, out: Path, facts: Facts, say: Callable[[str], None], launcher: Launcher) -> None:
        self._out, self._facts, self._say = out, facts, say
        self._failed: dict[str, str] = {}
        self._begun: set[str] = set()
        self._guard = threading.Lock()
        self._launcher = launcher
        self._children: set[BaseProcess] = set()
        self._stopping = False

    def make(self, step: Step, title: str) -> Path:
        """Make a step and its inputs where they are not there yet, and return its output.

        May be called from several threads. A step that failed is not tried again by this object.

        Raises:
            StepFailedError: it, or one it needs, failed.
            StoppedError: `stop` was called.
        """
        for one in step.in_order():
            self._make_one(one, title)
        return step.output(self._out)

    def stop(self) -> None:
        """End all commands: SIGTERM, on which training saves its state, and SIGKILL after `GRACE_S`."""
        with self._guard:
            self._stopping = True
            children = list(self._children)
        for child in children:
            signal_group(child, signal.SIGTERM)
        until = time.monotonic() + GRACE_S
        for child in children:
            child.join(max(0.0, until - time.monotonic()))
            signal_group(child, signal.SIGKILL)
            child.join()

    def _make_one(self, step: Step, title: str) -> None:
        folder = step.folder(self._out)
        if is_done(folder):
            return
        folder.mkdir(parents=True, exist_ok=True)
        with step_lock(folder / LOCK_FILE, lambda: self._wait_for(step, title)) as lock:
            if is_done(folder):
                return
            if step.identity in self._failed:
                raise StepFailedError(self._failed[step.identity])
            self._run(step, folder, title, lock)

    def _wait_for(self, step: Step, title: str) -> None:
        """Say that somebody else has a step, once; that another thread of this object has it is no news."""
        with self._guard:
            if self._stopping:
                raise StoppedError
            news = step.identity not in self._begun
            self._begun.add(step.identity)
        if news:
            self._say(f"{title}: another process makes step {step.name} ({step.folder(self._out)}); waiting for it")

    def _run(self, step: Step, folder: Path, title: str, lock: int) -> None:
        with self._guard:
            self._begun.add(step.identity)
        config = step.resolved(self._out)
        if step.kind.starts_over:
            shutil.rmtree(folder / OUTPUT, ignore_errors=True)
        step.kind.write(folder, config)
        words = step.kind.words(folder, config)
        self._record_start(step, folder, words)
        started_s = time.monotonic()
        if words:
            self._say(f"{title}: {step.name} ...")
            self._call(step, folder, words, lock)
        duration_s = round(time.monotonic() - started_s, 3)
        write_json(folder / DONE_FILE, {"finished_at": now(), "duration_s": duration_s})
        if words:
            self._say(f"{title}: {step.name} took {duration_s:.0f} s")

    def _call(self, step: Step, folder: Path, words: Sequence[str], lock: int) -> None:
        log = folder / LOG_FILE
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ longvid {shlex.join(words)}\n")
        with self._guard:
            if self._stopping:
                raise StoppedError
            child = self._launcher.start(words, command_environment(os.environ), log, lock)
            self._children.add(child)
        child.join()
        status = child.exitcode
        with self._guard:
            self._children.discard(child)
            if self._stopping and status != 0:  # None where `stop` saw the end first
                raise StoppedError
        if status != 0:
            message = f"step {step.name} ended with status {status}: {last_line(log)} (whole log: {log})"
            self._failed[step.identity] = message
            raise StepFailedError(message)

    def _record_start(self, step: Step, folder: Path, words: Sequence[str]) -> None:
        path = folder / STEP_FILE
        earlier = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.is_file() else []
        start = {
            "started_at": now(),
            "command": shlex.join(["longvid", *words]) if words else None,
            "git_commit": self._facts.git_commit,
            "versions": self._facts.versions,
            "hardware": self._facts.hardware,
        }
        record = {
            "step": step.name,
            "identity": step.identity,
            "config": step.config,
            "inputs": {name: one.identity for name, one in step.inputs.items()},
            "starts": [*earlier, start],
        }
        write_json(path, record)


def is_done(folder: Path) -> bool:
    """Whether a step's folder holds its whole output."""
    return (folder / DONE_FILE).is_file()


def command_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a step's command: a wandb agent's variables would make every step the agent's run."""
    kept = {name: value for name, value in environment.items() if not name.startswith("WANDB_")}
    return kept | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


def last_line(log: Path) -> str:
    """The last line of a log with anything in it: where a command fails, its message."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no message")
