"""Checkpoint folders that are written while training goes on: the same folders, whole or absent, faults told by all."""

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from longvid_train.training import checkpoint_io
from longvid_train.training.checkpoint_folder import TAG, folder_damage, read_index, save_engine
from longvid_train.training.checkpoint_io import CheckpointWriteError, in_progress
from longvid_train.training.last_checkpoint import by_age
from longvid_train.training.save_queue import SaveQueue
from longvid_train.training.trace import differences, rank_trace, read_trace

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
FULL_DISK = """
import errno
import os
from pathlib import Path
from pytorch_lightning.callbacks import Callback

sync = os.fsync


class FullDisk(Callback):
    '''The disk of rank 1 takes no file of step 3.'''

    def on_train_start(self, trainer, pl_module):
        folder = Path(trainer.default_root_dir) / "checkpoints"

        def full(handle):
            if trainer.global_rank == 1 and any("step=3" in path.name for path in folder.glob(".*")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        os.fsync = full
"""


class Engine:
    """Writes two files through its checkpoint engine, as DeepSpeed's does."""

    def __init__(self) -> None:
        self.module = nn.Linear(2, 3)
        self.checkpoint_engine: Any = None

    def save_checkpoint(self, folder: str, *, tag: str, client_state: dict[str, Any], **_: Any) -> None:
        place = Path(folder) / tag
        place.mkdir()
        (Path(folder) / "latest").write_text(tag)
        self.checkpoint_engine.save({"module": self.module.state_dict(), **client_state}, str(place / "model.pt"))
        self.checkpoint_engine.save({"moments": self.module.weight.detach()}, str(place / "optimizer.pt"))


@pytest.fixture
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def save(engine: Engine, target: Path, queue: SaveQueue, *, step: int = 1) -> None:
    state = {"global_step": step, "loops": [step]}
    save_engine(engine, state, target, start=1, stage=2, split=None, queue=queue, writers=None)


@pytest.mark.usefixtures("one_rank")
def test_a_folder_holds_the_state_of_the_moment_it_was_saved(tmp_path: Path, gate: threading.Event) -> None:
    engine, queue, target = Engine(), SaveQueue(background=True), tmp_path / "a.ckpt"
    weight = engine.module.weight.detach().clone()
    save(engine, target, queue, step=4)
    engine.module.weight.data.fill_(-1.0)
    assert not target.exists()
    assert queue.promises(target)
    gate.set()
    queue.wait()
    index = read_index(target)
    assert index is not None
    assert (index.step, index.zero_stage, index.processes, folder_damage(target)) == (4, 2, 1, None)
    assert set(index.files) == {f"{TAG}/model.pt", f"{TAG}/optimizer.pt", "latest"}
    model, moments = (torch.load(target / TAG / name, weights_only=True) for name in ("model.pt", "optimizer.pt"))
    assert torch.equal(model["module"]["weight"], weight)
    assert torch.equal(moments["moments"], weight)
    assert (model["global_step"], model["loops"]) == (4, [4])
    assert engine.checkpoint_engine is None, "the engine has its own writer again"


@pytest.mark.usefixtures("one_rank")
def test_never_more_than_one_folder_in_flight(tmp_path: Path, gate: threading.Event) -> None:
    engine, queue = Engine(), SaveQueue(background=True)
    save(engine, tmp_path / "1.ckpt", queue)
    second = threading.Thread(target=save, args=(engine, tmp_path / "2.ckpt", queue), daemon=True)
    second.start()
    second.join(0.3)
    assert second.is_alive(), "the second state waits for the first to be on disk"
    assert not in_progress(tmp_path / "2.ckpt").exists()
    gate.set()
    second.join(60)
    queue.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.ckpt", "2.ckpt"]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_leaves_nothing_of_the_folder(
    tmp_path: Path, background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = SaveQueue(background=background)
    save(Engine(), tmp_path / "1.ckpt", queue)
    queue.wait()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def attempt() -> None:
        save(Engine(), tmp_path / "2.ckpt", queue)
        queue.wait()

    monkeypatch.setattr(checkpoint_io.os, "fsync", full)
    with pytest.raises(CheckpointWriteError, match=r"2\.ckpt: cannot write the checkpoint \(No space left on device\)"):
        attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["1.ckpt"]
    assert folder_damage(tmp_path / "1.ckpt") is None


@pytest.mark.usefixtures("one_rank")
def test_a_fault_that_is_not_the_disks_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(value: object, stream: object) -> None:
        raise RuntimeError("no such tensor")

    monkeypatch.setattr(checkpoint_io.torch, "save", broken)
    with pytest.raises(RuntimeError, match="no such tensor"):
        save(Engine(), tmp_path / "1.ckpt", SaveQueue())
    assert not (tmp_path / "1.ckpt").exists()


def run_words(run: Path, stage: int) -> list[str]:
    trace = ["--trainer.callbacks+=longvid_train.training.trace.StateTrace"]
    trace.append(f"--trainer.callbacks.path={run.with_suffix('.jsonl')}")
    return ["--config", str(CONFIGS / f"zero{stage}.yaml"), "--run_dir", str(run), *trace]


ASYNCHRONOUS = ["--checkpoint.asynchronous", "true"]


def assert_same_run(one: Path, other: Path) -> None:
    for rank in range(2):
        left, right = (read_trace(rank_trace(run.with_suffix(".jsonl"), rank)) for run in (one, other))
        assert differences(left, right) == []
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, other)]
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_ranks_that_save_in_the_background_leave_the_same_folders_and_survive(
    stage: int, job_words: list[str], start_fit: StartFit, finish_fit: FinishFit, tmp_path: Path
) -> None:
    """At once; in the background; in the background with rank 1's disk full, then continued."""
    (tmp_path / "full_disk.py").write_text(FULL_DISK)
    whole, background, full = (tmp_path / name for name in ("whole", "background", "full"))
    assert finish_fit(start_fit(*job_words, *run_words(whole, stage))) == (0, [])
    assert finish_fit(start_fit(*job_words, *run_words(background, stage), *ASYNCHRONOUS)) == (0, [])
    assert_same_run(whole, background)
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, background)]
    assert names[0] == names[1]
    for name in names[0]:
        folders = [run / "checkpoints" / name for run in (whole, background)]
        indices = [read_index(folder) for folder in folders]
        assert indices[0] is not None and indices[1] is not None
        assert indices[0].files.keys() == indices[1].files.keys()
        assert replace(indices[0], files={}) == replace(indices[1], files={})
        assert [folder_damage(folder) for folder in folders] == [None, None]
        for path in sorted((folders[0] / TAG).glob("*optim_states.pt")):
            left, right = (torch.load(folder / TAG / path.name, weights_only=False) for folder in folders)
            assert_equal_leaves(left["optimizer_state_dict"], right["optimizer_state_dict"])
    disk = [*ASYNCHRONOUS, "--trainer.callbacks+=full_disk.FullDisk"]
    status, (line,) = finish_fit(start_fit(*job_words, *run_words(full, stage), *disk, path=tmp_path))
    assert status == 2
    assert "step=3.ckpt: cannot write the checkpoint (No space left on device); make room" in line
    readable, unreadable = by_age(full / "checkpoints")
    assert ({age.step for age in readable}, unreadable) == ({1, 2}, [])
    assert not list((full / "checkpoints").glob(".*"))
    assert finish_fit(start_fit(*job_words, *run_words(full, stage), *ASYNCHRONOUS, "--ckpt_path", "last")) == (0, [])
    assert_same_run(whole, full)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_ranks_ended_during_a_background_write_continue_to_the_same_bits(
    name: str,
    job_words: list[str],
    start_fit: StartFit,
    finish_fit: FinishFit,
    slow_disk: list[str],
    tmp_path: Path,
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert finish_fit(start_fit(*job_words, *run_words(whole, 2))) == (0, [])
    slow = [*ASYNCHRONOUS, *slow_disk]
    process = start_fit(*job_words, *run_words(run, 2), *slow, path=tmp_path)
    deadline = time.monotonic() + 600
    while not list((run / "checkpoints").glob(".*step=2.ckpt.in-progress")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, getattr(signal, name))
    status, _ = finish_fit(process)
    readable, unreadable = by_age(run / "checkpoints")
    assert ([folder_damage(age.path) for age in readable], unreadable) == ([None] * len(readable), [])
    left = len(list((run / "checkpoints").glob(".*")))
    assert left == (name == "SIGKILL")
    if name == "SIGKILL":
        assert (status, readable[0].step) == (-9, 1)
    else:
        assert (status, readable[0].step) == (143, read_trace(rank_trace(run.with_suffix(".jsonl"), 0))[-1]["step"])
    status, lines = finish_fit(start_fit(*job_words, *run_words(run, 2), *ASYNCHRONOUS, "--ckpt_path", "last"))
    assert (status, [" left half-written by a run that was killed" in line for line in lines]) == (0, [True] * left)
    assert_same_run(whole, run)
    assert not list((run / "checkpoints").glob(".*"))


def assert_equal_leaves(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_equal_leaves(left[name], right[name])
    elif isinstance(left, (list, tuple)):
        for one, other in zip(left, right, strict=True):
            assert_equal_leaves(one, other)
    elif isinstance(left, (int, float, str)):
        assert left == right
