"""What the ranks of a job know of each other without a collective: small files in the run folder.

A collective cannot tell why a rank does not come; a file can. ``ranks/rank<r>.json`` says where a rank stands, and
``failure.json`` is published by the rank that fails first: it can get its name once, so that is the cause, and
whatever the others run into afterwards follows from it. Each file names its start; where the ranks know no name for it,
files older than the `RankBoard` that reads them are of an earlier one.
"""

import contextlib
import json
import os
import socket
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from longvid_train.files import write_json, write_text
from longvid_train.training.checkpoint_io import publish
from longvid_train.training.ranks.start import UNKNOWN

FAILURE_FILE = "failure.json"
RANKS_FOLDER = "ranks"
CAUSE_VARIABLE = "LONGVID_CAUSE_FILE"
"""Names an empty file of this host in which a launch script wants ``STATUS CAUSE``, to print it behind its launcher's
own words."""


@dataclass(frozen=True, kw_only=True)
class RankState:
    """Where a rank stands.

    Attributes:
        rank: global.
        host: name of its machine.
        namespace: of its process id: two ranks of one host and namespace can look for each other's process.
        pid: its process id.
        step: optimiser steps done.
        micro_batch: of this start, from 0.
        phase: of the micro-batch, see ``Phase``.
        doing: the phase in words.
        ended: it left the job in order.
    """

    rank: int
    host: str
    namespace: int
    pid: int
    step: int = 0
    micro_batch: int = -1
    phase: int = 0
    doing: str = "start"
    ended: bool = False

    @property
    def position(self) -> tuple[int, int]:
        """Ranks that wait in a collective are ahead of the one they wait for."""
        return self.micro_batch, self.phase

    @property
    def name(self) -> str:
        """Rank, host and process for a message."""
        return f"rank {self.rank} ({self.host}, process {self.pid})"


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """Why a job ends.

    Attributes:
        rank: the rank that failed.
        told_by: the rank that wrote this: the same, or another one if it was killed.
        line: the cause, for the user.
        status: exit status of the job.
        traceback: of the failed rank; empty if it was killed.
    """

    rank: int
    told_by: int
    line: str
    status: int
    traceback: str = ""


class RankBoard:
    """The files of one job.

    Args:
        run_dir: folder of the run, which all hosts of the job share.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._start = UNKNOWN
        self._since_s = time.time()

    @property
    def failure_file(self) -> Path:
        """Where the cause stands."""
        return self.run_dir / FAILURE_FILE

    def begin(self, start: str = UNKNOWN) -> None:
        """Forget the last start; a failure that another rank of this one has already told stays.

        Args:
            start: as all ranks of this start know it. Where they do not, what is written from now on counts, by the
                clock of the folder's disk (maybe another machine's).
        """
        self._start = start
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.run_dir) as probe:
            self._since_s = os.fstat(probe.fileno()).st_mtime
        if self._of_this_start(self.failure_file) is None:
            self.failure_file.unlink(missing_ok=True)

    def claim(self, failure: JobFailure) -> bool:
        """Make ``failure`` the job's cause unless there is one; whether it is now.

        Where the folder cannot be written the failure is the cause to this process; the others see that it ends.
        """
        temporary = self.failure_file.with_name(f".{FAILURE_FILE}.{failure.told_by}")
        try:
            write_json(temporary, {"start": self._start, **asdict(failure)})
            publish(temporary, self.failure_file)
        except FileExistsError:
            return False
        except OSError:
            return True
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        _tell_launcher(failure)
        return True

    def failure(self) -> JobFailure | None:
        """The job's cause, if there is one."""
        told = self._of_this_start(self.failure_file)
        if told is None:
            return None
        failure = JobFailure(**told)
        _tell_launcher(failure)
        return failure

    def publish(self, state: RankState) -> None:
        """Say where a rank stands."""
        write_json(self._state_file(state.rank), {"start": self._start, **asdict(state)})

    def states(self, world_size: int) -> dict[int, RankState]:
        """Where the ranks of this start stand, as far as they have said so."""
        said = {rank: self._of_this_start(self._state_file(rank)) for rank in range(world_size)}
        return {rank: RankState(**values) for rank, values in said.items() if values is not None}

    def _state_file(self, rank: int) -> Path:
        return self.run_dir / RANKS_FOLDER / f"rank{rank}.json"

    def _of_this_start(self, path: Path) -> dict[str, Any] | None:
        """What a rank of this start has written to ``path``, if one has."""
        try:
            written_s = path.stat().st_mtime
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        start = values.pop("start", UNKNOWN)
        is_ours = start == self._start if self._start != UNKNOWN else written_s >= self._since_s
        return values if is_ours else None


def own_state(rank: int) -> RankState:
    """This process at the start of its job."""
    return RankState(rank=rank, host=socket.gethostname(), namespace=_pid_namespace(), pid=os.getpid())


def is_gone(state: RankState) -> bool:
    """Whether the process of a rank of this machine has ended."""
    try:
        return bool(psutil.Process(state.pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _tell_launcher(failure: JobFailure) -> None:
    name = os.environ.get(CAUSE_VARIABLE)
    if name and Path(name).exists() and Path(name).stat().st_size == 0:
        write_text(Path(name), f"{failure.status} {failure.line}\n")


def _pid_namespace() -> int:
    """Containers of one host may have the same name and other processes under the same numbers."""
    path = Path("/proc/self/ns/pid")
    return path.stat().st_ino if path.exists() else 0
