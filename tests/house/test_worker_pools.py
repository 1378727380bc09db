"""Workers end with the process they work for, however it ends, and leave nothing half done behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from longvid_train.pool import worker_pool

LIMIT_S = 120.0
WORKS = """
import signal, sys, time
from concurrent.futures import as_completed
from pathlib import Path

from longvid_train.pool import worker_pool


def work(folder, name, seconds):
    target = Path(folder) / name
    target.touch()
    try:
        time.sleep(seconds)
    finally:
        target.unlink()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    folder, outcome = sys.argv[1:]
    with worker_pool(2) as pool:
        futures = [pool.submit(work, folder, name, 3600) for name in "ab"]
        if outcome == "fails":
            sys.stdin.readline()
            raise SystemExit("failed")
        for future in as_completed(futures):
            future.result()
"""


@contextmanager
def at_work(folder: Path, outcome: str) -> Iterator[tuple["subprocess.Popen[str]", list[psutil.Process]]]:
    """A process whose two workers are busy for an hour, in a session of its own; and the workers."""
    script = folder.parent / "works.py"
    script.write_text(WORKS)
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), outcome],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers: list[psutil.Process] = []
    try:
        wait_until(lambda: len([*folder.iterdir()]) == 2)
        workers += [one for one in psutil.Process(process.pid).children() if "spawn_main" in " ".join(one.cmdline())]
        assert len(workers) == 2
        yield process, workers
    finally:
        for one in workers:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        process.communicate()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_ctrl_c_ends_the_workers_with_one_traceback_and_their_cleaning_up(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with at_work(folder, "waits") as (process, workers):
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_S)
        assert not [one for one in workers if one.is_running()]
        assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
        assert [*folder.iterdir()] == []


def test_a_failure_ends_the_workers_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with at_work(folder, "fails") as (process, workers):
        _, errors = process.communicate("now\n", timeout=LIMIT_S)
        assert errors.splitlines() == ["failed"]
        assert not [one for one in workers if one.is_running()]
        assert [*folder.iterdir()] == []


def test_a_killed_process_leaves_no_workers(tmp_path: Path) -> None:
    with at_work(tmp_path / "work", "waits") as (process, workers):
        process.kill()
        wait_until(lambda: not [one for one in workers if one.is_running()])


def _named(name: str) -> None:
    os.environ["LONGVID_TEST_NAME"] = name


def _name(number: int) -> tuple[int, str | None]:
    return number, os.environ.get("LONGVID_TEST_NAME")


@pytest.mark.parametrize("setup", [None, _named])
def test_what_the_workers_return(setup: Callable[[str], None] | None) -> None:
    with worker_pool(1, setup, () if setup is None else ("a worker",)) as pool:
        found = [pool.submit(_name, number) for number in range(3)]
    assert [one.result() for one in found] == [(number, None if setup is None else "a worker") for number in range(3)]
