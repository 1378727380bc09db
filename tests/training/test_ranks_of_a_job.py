"""Ranks that fail, are killed or stall: what the others know of them, what is said, and how the processes end."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from longvid_train.console import describe
from longvid_train.errors import UserError
from longvid_train.training.nan_guard import NonFiniteError
from longvid_train.training.ranks import guard as guards
from longvid_train.training.ranks.board import JobFailure, RankBoard, RankState, is_gone, own_state
from longvid_train.training.ranks.guard import JobFailedError, RankGuard, may_follow
from longvid_train.training.ranks.job import Job
from longvid_train.training.ranks.monitor import RankMonitor, Watchdog, dump_stacks, stall_line
from longvid_train.training.ranks.progress import Phase, Progress
from longvid_train.training.ranks.start import STEP_OF_SLURM, start_of_job
from longvid_train.training.save_queue import SaveQueue
from longvid_train.training.stop_signal import StopRequestedError

LONG_AGO_S = 1_000_000_000


WAITS = "import time; time.sleep(3600)"
"""For `child`: a process that lives until it is killed, wherever its standard input comes from."""


@pytest.fixture
def child() -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Start a Python process that runs the given text; it is gone when the test ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(text: str) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen([sys.executable, "-S", "-c", text]))
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def trainer_of(world_size: int, *, rank: int = 0, children: list[Any] | None = None) -> Any:
    """What a job asks of a trainer."""
    launcher = None if children is None else SimpleNamespace(procs=children)
    strategy = SimpleNamespace(
        launcher=launcher, num_processes=world_size, checkpoint_io=None, barrier=lambda name: None
    )
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=4))
    return SimpleNamespace(
        world_size=world_size,
        global_rank=rank,
        is_global_zero=rank == 0,
        strategy=strategy,
        global_step=2,
        fit_loop=loop,
    )


def monitor_of(trainer: Any, run: Path, watchdog: Watchdog | None = None) -> RankMonitor:
    progress = Progress(own_state(trainer.global_rank))
    return RankMonitor(Job(trainer), RankBoard(run), progress, watchdog or Watchdog(), SaveQueue())


def failed(rank: int, line: str = "why") -> JobFailure:
    return JobFailure(rank=rank, told_by=rank, line=line, status=1)


def test_the_first_failure_is_the_cause(tmp_path: Path) -> None:
    board, other = RankBoard(tmp_path), RankBoard(tmp_path)
    assert board.failure() is None
    assert board.claim(failed(1))
    assert not other.claim(failed(0))
    assert other.failure() == board.failure() == failed(1)


def test_files_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    earlier = RankBoard(tmp_path)
    earlier.publish(own_state(1))
    assert earlier.claim(failed(1))
    for path in tmp_path.rglob("*.json"):
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    board = RankBoard(tmp_path)
    board.begin()
    assert not board.failure_file.exists()
    assert (board.failure(), board.states(2)) == (None, {})
    assert board.claim(failed(0)), "the old cause makes room"
    assert board.failure() == failed(0)


def board_of(run: Path, start: str) -> RankBoard:
    board = RankBoard(run)
    board.begin(start)
    return board


def test_a_rank_that_begins_late_keeps_what_others_of_its_start_have_told(tmp_path: Path) -> None:
    """Rank 1 failed while rank 0 was still importing, by the clock of a disk that is behind."""
    early = board_of(tmp_path, "a")
    early.publish(own_state(1))
    assert early.claim(failed(1))
    for path in tmp_path.rglob("*.json"):
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))
    late = board_of(tmp_path, "a")
    assert late.failure() == failed(1)
    assert set(late.states(2)) == {1}
    assert not late.claim(failed(0))


def test_another_start_forgets_however_new_the_files_are(tmp_path: Path) -> None:
    earlier = board_of(tmp_path, "a")
    earlier.publish(own_state(1))
    assert earlier.claim(failed(1))
    for path in tmp_path.rglob("*.json"):
        os.utime(path, (time.time() + 3600,) * 2)
    board = board_of(tmp_path, "b")
    assert not board.failure_file.exists()
    assert (board.failure(), board.states(2)) == (None, {})
    assert board.claim(failed(0))
    assert (board.failure(), earlier.failure()) == (failed(0), None)


def test_processes_that_lightning_starts_know_the_start_from_the_one_that_started_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    cluster = LightningEnvironment()
    start = start_of_job(cluster, nodes=1, environment={})
    assert start
    assert start_of_job(cluster, nodes=1, environment={}) != start
    assert start_of_job(cluster, nodes=2, environment={"LONGVID_START": start}) == "", "each host has another"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert start_of_job(cluster, nodes=1, environment={"LONGVID_START": start}) == start
    assert start_of_job(cluster, nodes=1, environment={}) == "", "started by hand"


def test_the_start_is_announced_to_children_only_while_the_job_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("LONGVID_LAUNCHER_PID", "LONGVID_START")
    for name in names:
        monkeypatch.setenv(name, "of another")
    job = Job(trainer_of(2))
    job.announce("a")
    assert [os.environ[name] for name in names] == [str(os.getpid()), "a"]
    job.withdraw()
    assert not [name for name in names if name in os.environ]


def test_ranks_of_torchrun_agree_on_the_start_in_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    cluster, shared = TorchElasticEnvironment(), {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    starts = [
        start_of_job(cluster, nodes=2, environment={**shared, "TORCHELASTIC_RESTART_COUNT": count}) for count in "0011"
    ]
    assert starts[0] == starts[1] != starts[2] == starts[3]
    assert all(starts)
    assert start_of_job(cluster, nodes=2, environment={}) == "", "its store is not there before rank 0's"


CHANGES = [{name: "8"} for name in STEP_OF_SLURM]


def test_ranks_of_slurm_know_the_start_by_the_step_of_the_job() -> None:
    cluster = object.__new__(SLURMEnvironment)  # its constructor looks at this process
    step = {name: "7" for name in STEP_OF_SLURM if name != "SLURM_RESTART_COUNT"}
    starts = [start_of_job(cluster, nodes=2, environment={**step, **change}) for change in ({}, *CHANGES)]
    assert len({*starts}) == 1 + len(CHANGES)
    assert start_of_job(cluster, nodes=2, environment={**step, "SLURM_PROCID": "3"}) == starts[0]
    assert start_of_job(cluster, nodes=2, environment={"SLURM_JOB_ID": "7"}) == ""


def test_a_cause_that_cannot_be_written_is_that_of_the_process(tmp_path: Path) -> None:
    """The failure may be a full disk: it must not be hidden by another one."""
    folder = tmp_path / "runs"
    folder.write_text("a file where the runs' folder should be")
    assert RankBoard(folder / "run").claim(failed(0))


def test_a_launch_script_is_told_the_cause_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tmp_path / "cause"
    wanted.touch()
    monkeypatch.setenv("LONGVID_CAUSE_FILE", str(wanted))
    RankBoard(tmp_path / "run").claim(failed(1, "rank 1: no memory"))
    RankBoard(tmp_path / "other").claim(failed(0, "later"))
    assert wanted.read_text() == "1 rank 1: no memory\n"


def test_a_process_is_gone_when_it_has_ended_also_before_its_parent_looks(child: Any) -> None:
    process = child(WAITS)
    state = replace(own_state(1), pid=process.pid)
    assert not is_gone(state)
    process.kill()
    deadline = time.monotonic() + 60
    while not is_gone(state):  # a zombie: nobody has waited for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()
    assert is_gone(state)


@pytest.mark.parametrize(
    ("text", "said", "status"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL (out of memory, or from outside)", 137),
        ("import os; os._exit(3)", "ended with status 3 and without a word", 3),
    ],
)
def test_a_killed_child_is_named_by_the_rank_that_started_it(
    tmp_path: Path, child: Any, text: str, said: str, status: int
) -> None:
    process = child(text)
    process.wait()
    started = [process]
    monitor = monitor_of(trainer_of(2, children=started), tmp_path)
    monitor.job.adopt_children()
    assert started == [], "Lightning's observer, which kills everybody, has nobody left to observe"
    RankBoard(tmp_path).publish(replace(own_state(1), host="there", pid=process.pid))
    failure = monitor.failure()
    assert failure is not None
    assert failure.line == f"rank 1 (there, process {process.pid}) {said}; continue with --ckpt_path last"
    assert (failure.rank, failure.told_by, failure.status) == (1, 0, status)
    assert monitor.tells(failure)


def test_a_child_that_ended_in_order_is_no_failure(tmp_path: Path, child: Any) -> None:
    process = child("")
    process.wait()
    monitor = monitor_of(trainer_of(2, children=[process]), tmp_path)
    monitor.job.adopt_children()
    assert monitor.failure() is None


def test_a_peer_that_left_without_a_word_is_named_and_one_that_said_so_is_not(tmp_path: Path, child: Any) -> None:
    """Ranks that torchrun started: no rank is another's parent."""
    process = child(WAITS)
    monitor = monitor_of(trainer_of(2), tmp_path)
    peer = replace(own_state(1), pid=process.pid)
    monitor.board.publish(peer)
    monitor.publish(now=True)
    monitor.know_peers()
    assert monitor.failure() is None
    process.kill()
    process.wait()
    monitor.board.publish(replace(peer, ended=True))
    assert monitor.failure() is None
    monitor.board.publish(peer)
    failure = monitor.failure()
    assert failure is not None
    assert failure.line.startswith(f"{peer.name} ended without a word (killed, or out of memory)")
    assert monitor.tells(failure)


def test_a_peer_of_another_machine_is_not_looked_for_by_its_process_number(tmp_path: Path, child: Any) -> None:
    process = child("")
    process.wait()
    monitor = monitor_of(trainer_of(3), tmp_path)
    monitor.publish(now=True)
    monitor.board.publish(replace(own_state(1), pid=process.pid, host="elsewhere"))
    monitor.board.publish(replace(own_state(2), pid=process.pid, namespace=-1))
    monitor.know_peers()
    assert monitor.failure() is None


def test_a_rank_that_another_started_leaves_the_word_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGVID_LAUNCHER_PID", str(os.getppid()))
    assert not monitor_of(trainer_of(2, rank=1), tmp_path).tells(failed(1))
    monkeypatch.setenv("LONGVID_LAUNCHER_PID", "1234567")
    monitor = monitor_of(trainer_of(2, rank=1), tmp_path)
    assert monitor.tells(failed(1)), "the rank that started this one is not its parent any more"
    assert not monitor.tells(failed(0))


def test_what_may_follow_from_another_rank() -> None:
    assert may_follow(RuntimeError("Connection closed by peer"))
    assert may_follow(torch.distributed.DistBackendError("NCCL"))
    assert not may_follow(MemoryError())
    assert not may_follow(torch.OutOfMemoryError())
    assert not may_follow(UserError("no such file"))


@pytest.fixture
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RankGuard:
    """Rank 0 of two, looked after without a thread."""
    monkeypatch.setattr(guards, "PATIENCE_S", 0.2)
    made = RankGuard(RankBoard(tmp_path), Watchdog())
    made.monitor = monitor_of(trainer_of(2), tmp_path)
    return made


def test_an_error_of_a_collective_is_told_as_the_failure_it_follows_from(guard: RankGuard) -> None:
    trainer = trainer_of(2)
    guard.board.claim(JobFailure(rank=1, told_by=1, line="rank 1: no memory", status=7))
    with pytest.raises(JobFailedError) as told:
        assert guard.monitor is not None
        guard.monitor.job.children = [subprocess.Popen([sys.executable, "-S", "-c", ""])]
        guard.tell(trainer, RuntimeError("Connection closed by peer"))
    assert (told.value.line, told.value.status) == ("rank 1: no memory", 7)
    assert guard.monitor.job.children[0].returncode == 0, "the cause is the last line: others have ended"


def test_an_error_of_its_own_is_claimed_with_its_traceback(guard: RankGuard) -> None:
    trainer = trainer_of(2)
    try:
        raise MemoryError("no room")
    except MemoryError as error:
        guard.on_exception(trainer, None, error)  # type: ignore[arg-type]
        with pytest.raises(JobFailedError) as told:
            guard.tell(trainer, error)
    failure = guard.board.failure()
    assert failure is not None
    assert (told.value.line, told.value.status) == (failure.line, failure.status)
    assert "failed at step 0: MemoryError: no room (its traceback is in" in failure.line
    assert 'raise MemoryError("no room")' in failure.traceback
    assert failure.status == 1


def test_an_error_of_a_collective_without_another_failure_is_its_own(guard: RankGuard) -> None:
    with pytest.raises(JobFailedError, match="RuntimeError: shapes do not match"):
        guard.tell(trainer_of(2), RuntimeError("shapes do not match"))
    failure = guard.board.failure()
    assert failure is not None
    assert (failure.rank, failure.told_by) == (0, 0)


@pytest.mark.parametrize("error", [StopRequestedError(3), NonFiniteError("nan"), KeyboardInterrupt(), SystemExit(1)])
def test_what_all_ranks_raise_together_is_nobody_s_failure(guard: RankGuard, error: BaseException) -> None:
    assert guard.settle(trainer_of(2), error) is None
    assert guard.board.failure() is None


def test_a_user_s_mistake_is_told_as_it_is(guard: RankGuard) -> None:
    with pytest.raises(JobFailedError) as told:
        guard.tell(trainer_of(2), UserError("no such file"))
    assert (told.value.line, told.value.status) == ("no such file", 2)


def state(rank: int, micro_batch: int = 5, phase: Phase = Phase.BACKWARD) -> RankState:
    return RankState(
        rank=rank, host="h", namespace=1, pid=10 + rank, step=2, micro_batch=micro_batch, phase=phase, doing=phase.name
    )


def test_a_rank_behind_speaks_for_itself_and_the_first_ahead_names_it(tmp_path: Path) -> None:
    states = [state(0), state(1, phase=Phase.FORWARD), state(2), state(3, 4, Phase.OPTIMIZER)]
    report = str(tmp_path / "stacks.txt")
    lines = [stall_line(one, states, 60.4, report) for one in states]
    assert lines[0] is not None
    assert lines[0].startswith("rank 0 (h, process 10): no progress for 60 s at step 2, micro-batch 5 (BACKWARD)")
    assert lines[0].endswith("waiting for rank 3 (h, process 13), last seen at micro-batch 4 (OPTIMIZER)")
    assert lines[1:3] == [None, None], "neither is the last, nor the first of those that wait"
    assert lines[3] is not None
    assert re.search(r"place_of_main_thread \(\S+\.py:\d+\); stacks of all threads: ", lines[3])


def test_ranks_at_one_place_are_one_line(tmp_path: Path) -> None:
    states = [state(0), state(1)]
    lines = [stall_line(one, states, 60.0, "") for one in states]
    assert lines[0] is not None
    assert "where all 2 ranks are" in lines[0]
    assert lines[1] is None


def test_a_stall_is_reported_once_with_the_stacks_of_all_threads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("longvid_train.training.ranks.progress.time", SimpleNamespace(monotonic=lambda: now_s))
    monitor = monitor_of(trainer_of(1), tmp_path, Watchdog(stall_s=60.0))
    monitor.progress.mark(Phase.FORWARD, step=3, micro_batch=7)
    now_s += 59.0
    monitor._watch_progress()
    assert capsys.readouterr().err == ""
    now_s += 1.0
    monitor._watch_progress()
    monitor._watch_progress()
    (line,) = capsys.readouterr().err.splitlines()
    report = tmp_path / "stacks_rank0.txt"
    assert "at step 3, micro-batch 7 (forward pass)" in line
    assert line.endswith(f"stacks of all threads: {report}")
    text = report.read_text()
    assert text.count("in forward pass, step 3, micro-batch 7") == 1
    assert "in test_a_stall_is_reported_once" in text
    monitor.progress.mark(Phase.BACKWARD, step=3)
    monitor._watch_progress()
    now_s += 60.0
    monitor._watch_progress()
    assert report.read_text().count("in backward pass, step 3, micro-batch 7") == 1, "a second stall is another report"


def test_dumps_are_appended(tmp_path: Path) -> None:
    for seconds in (1.0, 2.0):
        dump_stacks(tmp_path, state(3), seconds)
    heads = [line for line in (tmp_path / "stacks_rank3.txt").read_text().splitlines() if "rank 3" in line]
    assert [re.search(r"(\d) s in", line).group(1) for line in heads] == ["1", "2"]  # type: ignore[union-attr]


def test_the_phases_of_a_micro_batch_come_in_the_order_in_which_ranks_pass_them(tmp_path: Path) -> None:
    guard, trainer = RankGuard(RankBoard(tmp_path), Watchdog()), trainer_of(1)
    seen = []
    hooks: list[tuple[Any, list[Any]]] = [
        (guard.on_train_batch_start, [None, 0]),
        (guard.on_before_backward, [None]),
        (guard.on_after_backward, []),
        (guard.on_before_optimizer_step, [None]),
        (guard.on_train_batch_end, []),
    ]
    for hook, more in hooks:
        hook(trainer, None, *more)
        seen.append(guard._progress.read()[0].position)
    assert seen == [(4, 1), (4, 2), (4, 3), (4, 4), (5, 0)]
    assert seen == sorted(seen)


def stall(run: Path) -> None:
    monitor = monitor_of(trainer_of(1), run, Watchdog(stall_s=0.1, abort=True))
    monitor.watches_progress = True
    monitor.start()
    time.sleep(1000)


def test_the_process_of_a_stalled_job_is_ended_with_a_status_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own: its main thread hangs, and nothing comes back from where the monitor ends it."""
    process = multiprocessing.get_context("fork").Process(target=stall, args=(tmp_path,))
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 124
    last = capfd.readouterr().err.splitlines()[-1]
    assert "no progress for" in last
    assert "stall (" in last
    assert "in stall" in (tmp_path / "stacks_rank0.txt").read_text()


def test_a_watchdog_without_time_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"watchdog\.stall_s is 0"):
        Watchdog(stall_s=0)


def test_what_a_command_says_of_an_error(tmp_path: Path) -> None:
    assert describe(UserError("a\nb")) == ("a b", 2)
    assert describe(ValueError("x")) == ("ValueError: x", 1)
    assert describe(PermissionError(13, "Permission denied", "/a")) == (
        "/a: Permission denied; name another file or folder",
        2,
    )
    assert json.loads(json.dumps({"line": describe(KeyError("k"))[0]}))["line"] == "KeyError: 'k'"
