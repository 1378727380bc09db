"""The job that a rank belongs to: its size, who launched it, which processes are this rank's to look after."""

import os
import signal
import subprocess
from typing import Any

import pytorch_lightning as pl

from longvid_train.training.ranks.start import START_VARIABLE, start_of_job

LAUNCHER_VARIABLE = "LONGVID_LAUNCHER_PID"
POLITE_S = 10.0
"""Seconds that the other processes of this host get to end by themselves before they are killed."""


class Job:
    """This rank's view of its job.

    Args:
        trainer: of the run, before it is launched.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._parent = os.getppid()
        self._launcher = os.environ.get(LAUNCHER_VARIABLE)
        self.children: list[subprocess.Popen[bytes]] = []

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return int(self._trainer.world_size)

    @property
    def rank(self) -> int:
        """This rank."""
        return int(self._trainer.global_rank)

    def adopt_children(self) -> None:
        """Take the processes that Lightning started on this host over from Lightning.

        Its observer kills all with SIGKILL, this process too, as soon as one of them fails: the cause would be lost.
        An observer with nobody to observe ends.
        """
        started: list[Any] = getattr(self._trainer.strategy.launcher, "procs", [])
        if started and len(started) == self._trainer.strategy.num_processes - 1:
            self.children = list(started)
            started.clear()

    def give_children_back(self) -> None:
        """Let Lightning end them, as it does for Ctrl-C."""
        launcher = self._trainer.strategy.launcher
        if self.children and launcher is not None:
            launcher.procs.extend(self.children)

    def start(self) -> str:
        """The start of the job that this rank belongs to, see `start_of_job`."""
        cluster = self._trainer.strategy.cluster_environment
        return start_of_job(cluster, nodes=self._trainer.num_nodes, environment=os.environ)

    def announce(self, start: str) -> None:
        """Let the processes that Lightning starts from this one know who started them, and which start they are of."""
        os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
        os.environ[START_VARIABLE] = start

    def withdraw(self) -> None:
        """Forget the announcement, which the environment would keep for the next run of this process."""
        if os.environ.get(LAUNCHER_VARIABLE) == str(os.getpid()):
            del os.environ[LAUNCHER_VARIABLE], os.environ[START_VARIABLE]

    @property
    def has_living_launcher(self) -> bool:
        """Whether another rank started this process, and is still there to speak for the job."""
        return os.getppid() == self._parent and self._launcher == str(self._parent)

    def failed_child(self) -> tuple[int, int] | None:
        """Rank and exit status (negative: a signal) of a process of this host that failed."""
        for number, child in enumerate(self.children, start=1):
            if child.poll():
                return self.rank + number, int(child.returncode)
        return None

    def end_children(self) -> None:
        """Wait until the processes that this one looks after have ended; kill those that do not."""
        for child in self.children:
            try:
                child.wait(POLITE_S)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
