"""A thread in each process of a run that sees what the training thread cannot while it waits in a collective.

It reports a rank that makes no progress, with the stacks of all its threads, notices a rank that failed or was killed,
and ends this process when the training thread does not end by itself.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from longvid_train.console import EXIT_FAILURE, say
from longvid_train.errors import UserError
from longvid_train.training.ranks.board import JobFailure, RankBoard, RankState, is_gone
from longvid_train.training.ranks.job import Job
from longvid_train.training.ranks.progress import Progress, place_of_main_thread
from longvid_train.training.record import now
from longvid_train.training.save_queue import SaveQueue

POLL_S = 0.5
MEET_S = 3.0
GRACE_S = 5.0
"""From another rank's failure until this rank, if its training thread is still at work, is ended."""
ENDING_S = 60.0
"""For a training thread that has begun to end: loggers are closed, a checkpoint being written is finished."""
NAMED = 8
"""Ranks named in one line."""
EXIT_STALLED = 124
"""Exit status of a run that the watchdog ended, as of ``timeout``."""


@dataclass(frozen=True, kw_only=True)
class Watchdog:
    """What is done about a rank that makes no progress.

    Attributes:
        stall_s: seconds without a part of a micro-batch, a validation batch or the end of an epoch, after which the
            stacks of all threads are written to the run folder.
        abort: also end all ranks, with status 124.
    """

    stall_s: float = 1800.0
    abort: bool = False

    def __post_init__(self) -> None:
        if self.stall_s <= 0:
            raise UserError(f"watchdog.stall_s is {self.stall_s}; it must be more than 0 seconds")


class RankMonitor(threading.Thread):
    """Looks every half second.

    Args:
        job: what this rank belongs to.
        board: what the ranks know of each other.
        progress: of this rank.
        watchdog: what to do about a stall.
        queue: what this process still writes.
    """

    def __init__(self, job: Job, board: RankBoard, progress: Progress, watchdog: Watchdog, queue: SaveQueue) -> None:
        super().__init__(name="rank-monitor", daemon=True)
        self.job, self.board, self.progress, self.watchdog, self.queue = job, board, progress, watchdog, queue
        self.watches_progress = False
        self._left = threading.Event()
        self._reported_s = 0.0
        self._published_s = float("-inf")
        self._deadline_s: float | None = None
        self._peers: list[RankState] = []
        self._all_known = False
        self._met_s = float("-inf")

    def run(self) -> None:
        """Look until the rank leaves the job."""
        while not self._left.wait(POLL_S):
            self.job.adopt_children()
            if self.watches_progress:
                self._watch_progress()
            if self.job.world_size > 1:
                self.publish(now=self._meet())
                self._watch_failure()

    def leave(self) -> None:
        """Stop looking: the rank has come to its end in order."""
        self._left.set()
        self.join()

    def know_peers(self) -> None:
        """Read who the others are, as far as they have said so."""
        mine, _ = self.progress.read()
        states = self.board.states(self.job.world_size).values()
        self._all_known = len(states) == self.job.world_size
        self._peers = [state for state in states if state.rank != mine.rank and _machine(state) == _machine(mine)]

    def _meet(self) -> bool:
        """Look for the others every few seconds until all are known: one may be killed while the rest wait for it."""
        if self._all_known or time.monotonic() - self._met_s < MEET_S:
            return False
        self._met_s = time.monotonic()
        self.know_peers()
        return True

    def publish(self, *, now: bool = False) -> None:
        """Say where this rank stands, at most eight times in ``stall_s`` and every half minute."""
        interval_s = min(self.watchdog.stall_s / 8, 30.0)
        if now or time.monotonic() - self._published_s >= interval_s:
            self._published_s = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk is the training thread's to report
                self.board.publish(self.progress.read()[0])

    def failure(self) -> JobFailure | None:
        """The job's cause; one that nobody could write down, as of a killed rank, is found and written here."""
        found = self.board.failure()
        return found or self._killed_rank()

    def allow_ending(self) -> None:
        """The training thread has begun to end."""
        self._deadline_s = time.monotonic() + ENDING_S

    def tells(self, failure: JobFailure) -> bool:
        """Whether this rank prints the cause: the one that the user started, or that stands in for it."""
        if self.job.children:
            return True
        if self.job.has_living_launcher:
            return False
        return failure.told_by == self.progress.read()[0].rank

    def _watch_failure(self) -> None:
        failure = self.failure()
        if failure is None:
            return
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + GRACE_S
        if time.monotonic() > self._deadline_s:
            self._end(failure)

    def _killed_rank(self) -> JobFailure | None:
        child = self.job.failed_child()
        if child is not None:
            rank, status = child
            return self._tell_of(rank, _how_it_ended(status), 128 - status if status < 0 else status)
        own = {process.pid for process in self.job.children}
        for peer in self._peers:
            if peer.pid not in own and is_gone(peer) and not self._ended(peer):
                return self._tell_of(peer.rank, "ended without a word (killed, or out of memory)", EXIT_FAILURE)
        return None

    def _ended(self, peer: RankState) -> bool:
        state = self.board.states(self.job.world_size).get(peer.rank)
        return state is not None and state.ended

    def _tell_of(self, rank: int, what: str, status: int) -> JobFailure | None:
        state = self.board.states(self.job.world_size).get(rank)
        who = f"rank {rank}" if state is None else state.name
        line = f"{who} {what}; continue with --ckpt_path last"
        self.board.claim(JobFailure(rank=rank, told_by=self.progress.read()[0].rank, line=line, status=status))
        return self.board.failure()

    def _watch_progress(self) -> None:
        state, idle_s = self.progress.read()
        if idle_s < self.watchdog.stall_s:
            self._reported_s = 0.0
            return
        if self._reported_s:
            return
        self._reported_s = idle_s
        try:
            report = str(dump_stacks(self.board.run_dir, state, idle_s))
        except OSError as error:
            report = f"not written ({error})"
        states = self._states(state)
        line = stall_line(state, states, idle_s, report)
        if line is None:
            return
        say(line)
        if self.watchdog.abort:
            last = min(states, key=lambda one: one.position)
            self._abort(JobFailure(rank=last.rank, told_by=state.rank, line=line, status=EXIT_STALLED))

    def _states(self, mine: RankState) -> list[RankState]:
        if self.job.world_size == 1:
            return [mine]
        self.publish(now=True)
        states = {**self.board.states(self.job.world_size), mine.rank: mine}
        return [states[rank] for rank in sorted(states)]

    def _abort(self, failure: JobFailure) -> None:
        if self.job.world_size == 1:
            self._end(failure)
        self.board.claim(failure)

    def _end(self, failure: JobFailure) -> None:
        """End this process from here: the training thread cannot be interrupted in a collective."""
        try:
            self.queue.finish(ENDING_S)
        except TimeoutError:
            say("a checkpoint was still being written; it is absent, earlier ones are whole")
        if self.job.world_size == 1 or self.tells(failure):
            self.job.end_children()
            say(failure.line)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(failure.status)


def dump_stacks(run_dir: Path, state: RankState, idle_s: float) -> Path:
    """Append the stacks of all threads of this process to ``stacks_rank<r>.txt`` and return the file."""
    path = run_dir / f"stacks_rank{state.rank}.txt"
    run_dir.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(
            f"{now()} {state.name}: {idle_s:.0f} s in {state.doing}, step "
            f"{state.step}, micro-batch {state.micro_batch}\n"
        )
        stream.flush()
        faulthandler.dump_traceback(file=stream, all_threads=True)
        stream.write("\n")
    return path


def stall_line(mine: RankState, states: list[RankState], idle_s: float, report: str) -> str | None:
    """What a rank says of a stall: each that is behind for itself, and the first that is not for those that cannot.

    Args:
        mine: where the speaking rank stands.
        states: where all ranks stand, in their order; a frozen rank may have come further than it could still say.
        idle_s: seconds without progress.
        report: where the stacks are.

    Returns:
        One line, or None for a rank that has nothing to add.
    """
    least = min(state.position for state in states)
    behind = [state for state in states if state.position == least]
    ahead = [state for state in states if state.position > least]
    start = f"{mine.name}: no progress for {idle_s:.0f} s at step {mine.step}, micro-batch {mine.micro_batch}"
    if not ahead:
        together = "" if len(states) == 1 else f", where all {len(states)} ranks are"
        line = f"{start} ({mine.doing}){together}: {place_of_main_thread()}; stacks of all threads: {report}"
        return line if mine.rank == states[0].rank else None
    if mine.position == least:
        return f"{start} ({mine.doing}): {place_of_main_thread()}; stacks of all threads: {report}"
    if mine.rank != ahead[0].rank:
        return None
    missing = ", ".join(
        f"{state.name}, last seen at micro-batch {state.micro_batch} ({state.doing})" for state in behind[:NAMED]
    )
    more = f" and {len(behind) - NAMED} more" if len(behind) > NAMED else ""
    return f"{start} ({mine.doing}): waiting for {missing}{more}"


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status} and without a word"
    hint = " (out of memory, or from outside)" if status == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-status).name}{hint}"


def _machine(state: RankState) -> tuple[str, int]:
    return state.host, state.namespace
