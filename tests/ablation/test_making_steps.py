"""Commands as processes: their log, their status, the lock they keep, and how trainings are continued."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from longvid_train.ablation.kinds import KINDS
from longvid_train.ablation.launching import Launcher, signal_group
from longvid_train.ablation.locks import folder_lock, step_lock
from longvid_train.ablation.making import command_environment, last_line
from longvid_train.errors import UserError

WORLD = {"sets": [{"videos": {"test": 1}, "duration_s": 2, "size_px": 64}]}


class WaitedError(Exception):
    pass


def held(path: Path) -> bool:
    def waited() -> None:
        raise WaitedError

    try:
        with step_lock(path, waited):
            return False
    except WaitedError:
        return True


def test_a_command_runs_logs_and_keeps_the_lock_as_long_as_it_lives(tmp_path: Path) -> None:
    """Also when the process that started it is gone: its own hold on the lock is let go of here."""
    config, log, lock = tmp_path / "world.yaml", tmp_path / "log.txt", tmp_path / ".lock"
    config.write_text(yaml.safe_dump(WORLD))
    launcher = Launcher(preloaded=())
    with step_lock(lock, lambda: None) as descriptor:
        words = ["world", "--config", str(config), "--out", str(tmp_path / "out")]
        environment = {**command_environment(os.environ), "LONGVID_TEST": "1"}
        process = launcher.start(words, environment, log, descriptor)
        mistaken = launcher.start(
            ["world", "--config", "none.yaml", "--out", "x"], environment, tmp_path / "b.txt", descriptor
        )
    assert held(lock)
    process.join(120)
    mistaken.join(120)
    assert (process.exitcode, mistaken.exitcode) == (0, 2)
    assert not held(lock)
    assert (tmp_path / "out" / "test" / "manifest.jsonl").is_file()
    assert "1 files rendered" in log.read_text()
    assert last_line(tmp_path / "b.txt").startswith("longvid: none.yaml does not exist")


def test_a_command_is_stopped_with_its_children(tmp_path: Path) -> None:
    config = tmp_path / "world.yaml"
    config.write_text(yaml.safe_dump({"sets": [{"videos": {"test": 500}, "duration_s": 60}]}))
    with step_lock(tmp_path / ".lock", lambda: None) as descriptor:
        words = ["world", "--config", str(config), "--out", str(tmp_path / "out")]
        process = Launcher(preloaded=()).start(words, dict(os.environ), tmp_path / "log.txt", descriptor)
    assert process.pid is not None
    until = time.monotonic() + 100
    while os.getpgid(process.pid) != process.pid and time.monotonic() < until:
        time.sleep(0.01)
    status = Path(f"/proc/{process.pid}/status")
    while "SigBlk:\t0000000000000000" not in status.read_text():  # Ctrl-C is for commands too
        assert time.monotonic() < until
        time.sleep(0.01)
    signal_group(process, signal.SIGTERM)
    process.join(100)
    assert process.exitcode == -signal.SIGTERM
    signal_group(process, signal.SIGKILL)  # one that has ended is left alone
    assert not held(tmp_path / ".lock")


STARTS_A_SERVER = """
import os, signal, sys, threading
from pathlib import Path

from longvid_train.ablation.launching import Launcher


def start():
    with Path("log.txt").open("w") as stream:
        Launcher(preloaded=["slow_to_import"]).start(["--version"], dict(os.environ), Path("log.txt"), stream.fileno())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join()
"""


def test_an_interruption_while_the_server_imports_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "starts.py").write_text(STARTS_A_SERVER)
    (tmp_path / "slow_to_import.py").write_text("open('begun', 'w').close()\nimport time\ntime.sleep(3600)\n")
    process = subprocess.Popen(
        [sys.executable, "starts.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=(tmp_path / "errors.txt").open("w"),
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 100
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(100)
        errors = (tmp_path / "errors.txt").read_text()
        assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_training_is_continued_from_its_checkpoint(tmp_path: Path) -> None:
    fit = KINDS["fit"]
    fresh = fit.words(tmp_path, {})
    assert fresh[fresh.index("--wandb") + 1] == "off" and "--ckpt_path" not in fresh
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    assert fit.words(tmp_path, {}) == fresh
    (tmp_path / "out" / "checkpoints" / "last-step=3.ckpt").write_bytes(b"")
    assert fit.words(tmp_path, {}) == [*fresh, "--ckpt_path", "last"]


def test_options_of_init(tmp_path: Path) -> None:
    config = {"seed": 3, "no-text-decoder": True, "no-content": False, "tower": None}
    assert KINDS["init"].words(tmp_path, config) == [
        "init",
        "--out",
        f"{tmp_path}/out",
        "--seed",
        "3",
        "--no-text-decoder",
    ]


def test_an_adaptation_is_written_as_a_file_that_reads_back(tmp_path: Path) -> None:
    kind = KINDS["adaptation"]
    (tmp_path / "base.yaml").write_text("cache: {quantizer: q}\nwindow: {kind: ntk}\n")
    base = kind.read(tmp_path / "base.yaml")
    assert base["cache"]["quantizer"] == str(tmp_path / "q"), "relative to the file it came from"
    kind.write(tmp_path, base)
    assert yaml.safe_load((tmp_path / "out" / "adaptation.yaml").read_text()) == base


def test_keys_that_the_ablation_sets_are_dropped_from_a_base(tmp_path: Path) -> None:
    path = tmp_path / "stage.yaml"
    path.write_text("run_dir: runs/a\nwandb: online\nseed_everything: 2\n")
    assert KINDS["fit"].read(path) == {"seed_everything": 2}


def test_no_variable_of_wandb_reaches_a_step_but_offline() -> None:
    found = command_environment({"PATH": "/bin", "WANDB_SWEEP_ID": "a", "WANDB_RUN_ID": "b", "WANDB_MODE": "online"})
    assert found == {"PATH": "/bin", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}


def test_a_full_run_and_agents_exclude_each_other_and_agents_do_not(tmp_path: Path) -> None:
    with folder_lock(tmp_path, shared=True):
        with folder_lock(tmp_path, shared=True):
            pass
        with pytest.raises(UserError, match="is at work there"), folder_lock(tmp_path, shared=False):
            pass
    with folder_lock(tmp_path, shared=False):
        pass
