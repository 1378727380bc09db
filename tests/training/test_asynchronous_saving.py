"""Checkpoints that are written while training goes on: the same files, the same promises, failures that are told."""

import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training import checkpoint_io
from longvid_train.training.checkpoint_io import (
    AtomicCheckpointIO,
    CheckpointWriteError,
    damage,
    in_progress,
    write_checkpoint,
)
from longvid_train.training.last_checkpoint import by_age
from longvid_train.training.save_queue import SaveQueue, snapshot
from longvid_train.training.trace import differences, read_trace

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
TRACE = "longvid_train.training.trace.StateTrace"
ASYNCHRONOUS = ["--checkpoint.asynchronous", "true"]


def background_io() -> AtomicCheckpointIO:
    writer = AtomicCheckpointIO()
    writer.queue.background = True
    return writer


def test_a_file_holds_the_state_of_the_moment_it_was_saved(tmp_path: Path, gate: threading.Event) -> None:
    writer, target = background_io(), tmp_path / "a.ckpt"
    weight, loops = torch.arange(6.0), {"step": [1, 2]}
    state = {"weight": weight, "tied": weight, "half": weight[3:], "loops": loops}
    same = tmp_path / "at_once" / "a.ckpt"
    gate.set()
    write_checkpoint(state, same)
    gate.clear()
    writer.save_checkpoint(state, target)
    weight.fill_(-1.0)
    loops["step"].append(3)
    assert not target.exists()
    assert writer.queue.promises(target)
    gate.set()
    writer.queue.wait()
    assert damage(target) is None
    assert not writer.queue.promises(target)
    assert target.read_bytes() == same.read_bytes(), "shared tensors are written once, as without a snapshot"


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
    data=st.data(),
)
def test_a_snapshot_equals_and_shares_only_with_itself(sizes: list[int], dtype: torch.dtype, data: Any) -> None:
    """Any views of a few storages, transposed and cut: equal values and strides, sharing kept, none with the source."""
    bases = [torch.arange(size * 4).reshape(size, 4).to(dtype) for size in sizes]
    picks = data.draw(st.lists(st.integers(0, len(bases) - 1), min_size=1, max_size=6))
    views = [bases[pick].T[:, data.draw(st.integers(0, sizes[pick])) :] for pick in picks]
    copied = snapshot({"views": views, "nested": ({"first": views[0]}, [None, "text"])})
    assert copied["nested"][0]["first"] is copied["views"][0]
    for index, (view, copy) in enumerate(zip(views, copied["views"], strict=True)):
        assert (copy.stride(), copy.shape, copy.dtype) == (view.stride(), view.shape, view.dtype)
        assert torch.equal(copy, view)
        for other, other_copy in zip(views[:index], copied["views"][:index], strict=True):
            if view.untyped_storage().nbytes() and other.untyped_storage().nbytes():
                shared = view.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
                assert (copy.untyped_storage().data_ptr() == other_copy.untyped_storage().data_ptr()) == shared
    before = [copy.clone() for copy in copied["views"]]
    for base in bases:
        base.fill_(7)
    assert all(torch.equal(left, right) for left, right in zip(before, copied["views"], strict=True))


def test_never_more_than_one_state_in_flight(tmp_path: Path, gate: threading.Event) -> None:
    writer = background_io()
    writer.save_checkpoint({"value": torch.zeros(3)}, tmp_path / "1.ckpt")
    second = threading.Thread(
        target=writer.save_checkpoint, args=({"value": torch.ones(3)}, tmp_path / "2.ckpt"), daemon=True
    )
    second.start()
    second.join(0.3)
    assert second.is_alive(), "the second state waits for the first to be on disk"
    assert not in_progress(tmp_path / "2.ckpt").exists()
    gate.set()
    second.join(60)
    writer.queue.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.ckpt", "2.ckpt"]


def test_an_older_file_is_removed_only_when_the_newer_is_on_disk(tmp_path: Path, gate: threading.Event) -> None:
    writer, old, new = background_io(), tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    old.write_bytes(b"old")
    writer.save_checkpoint({"value": torch.zeros(3)}, new)
    writer.remove_checkpoint(old)
    assert (old.exists(), new.exists()) == (True, False)
    gate.set()
    writer.queue.wait()
    assert (old.exists(), new.exists()) == (False, True)


def test_behind_a_failed_write_nothing_is_removed(tmp_path: Path) -> None:
    writer, old = background_io(), tmp_path / "old.ckpt"
    old.write_bytes(b"old")
    writer.queue.run(lambda: (_ for _ in ()).throw(CheckpointWriteError("no room")))
    writer.remove_checkpoint(old)
    with pytest.raises(CheckpointWriteError, match="no room"):
        writer.queue.wait()
    assert old.exists()
    writer.queue.wait()  # a failure is raised once


def test_a_queue_in_the_foreground_has_done_the_work_when_it_returns() -> None:
    done: list[str] = []
    queue = SaveQueue()
    queue.run(lambda: done.append(threading.current_thread().name))
    assert done == [threading.current_thread().name]
    assert queue.finish() is None


def words(config: Path, run: Path, *more: str) -> list[str]:
    trace = [f"--trainer.callbacks+={TRACE}", f"--trainer.callbacks.path={run / 'trace.jsonl'}"]
    return ["fit", "--config", str(config), "--run_dir", str(run), *trace, *more]


@pytest.fixture(scope="module")
def whole_run(fit_config_in: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config of 6 steps with a state after each and the best of two kept, and its run that saves at once."""
    folder = tmp_path_factory.mktemp("asynchronous")
    config = fit_config_in(
        folder,
        model__init_args__torch_threads=1,
        data__init_args__loading={"batch_size": 2, "num_workers": 0},
        checkpoint={"every_n_train_steps": 1},
    )
    whole = folder / "whole"
    assert cli.main(words(config, whole)) == 0
    return config, whole


def checkpoints(run: Path) -> dict[str, Path]:
    return {path.name: path for path in (run / "checkpoints").iterdir()}


def assert_same_states(one: Path, other: Path) -> None:
    left, right = checkpoints(one), checkpoints(other)
    assert left.keys() == right.keys()
    for name in left:
        states = [torch.load(path, weights_only=True) for path in (left[name], right[name])]
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert torch.equal(*[flat(state[part]) for state in states])
        assert states[0]["loops"] == states[1]["loops"]


def flat(value: Any) -> torch.Tensor:
    tensors = [torch.as_tensor(leaf, dtype=torch.float64).flatten() for leaf in leaves(value)]
    return torch.cat(tensors)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, (torch.Tensor, int, float)):
        yield value


def test_a_run_that_saves_in_the_background_leaves_the_same_files(whole_run: tuple[Path, Path], tmp_path: Path) -> None:
    config, whole = whole_run
    run = tmp_path / "run"
    assert cli.main(words(config, run, *ASYNCHRONOUS)) == 0
    assert differences(read_trace(whole / "trace.jsonl"), read_trace(run / "trace.jsonl")) == []
    assert set(checkpoints(run)) == {"epoch=0-step=6.ckpt", "last-step=5.ckpt", "last-step=6.ckpt"}
    assert_same_states(whole, run)
    newest = checkpoints(run)
    assert newest["last-step=6.ckpt"].samefile(newest["epoch=0-step=6.ckpt"]), "a state under two names is one file"


def test_a_failed_write_ends_the_run_between_two_steps(
    whole_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full from step 3 on: the run ends with the line of a run that saves at once; then it is continued."""
    config, whole = whole_run
    run = tmp_path / "run"
    sync = os.fsync

    def full(handle: int) -> None:
        if any("step=3" in path.name for path in (run / "checkpoints").glob(".*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_io.os, "fsync", full)
        capsys.readouterr()
        assert cli.main(words(config, run, *ASYNCHRONOUS)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: ")]
    assert len(lines) == 1, lines
    assert "step=3.ckpt: cannot write the checkpoint (No space left on device); make room" in lines[0]
    assert len(read_trace(run / "trace.jsonl")) < 6, "it did not train to the end without checkpoints"
    readable, unreadable = by_age(run / "checkpoints")
    assert ([age.step for age in readable], unreadable) == ([2, 2, 1], [])
    assert not list((run / "checkpoints").glob(".*"))
    assert cli.main(words(config, run, *ASYNCHRONOUS, "--ckpt_path", "last")) == 0
    assert differences(read_trace(whole / "trace.jsonl"), read_trace(run / "trace.jsonl")) == []


@pytest.mark.slow
def test_a_nan_names_the_state_that_was_still_being_written(
    whole_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from longvid_train.training.module import LlamaVidTraining

    config, _ = whole_run
    original, sync = LlamaVidTraining._summed_loss, os.fsync

    def poisoned(self: Any, batch: Any) -> tuple[torch.Tensor, int]:
        loss, tokens = original(self, batch)
        return (loss * torch.nan if self.trainer.global_step == 3 else loss), tokens

    def slow(handle: int) -> None:
        time.sleep(0.3)
        sync(handle)

    monkeypatch.setattr(LlamaVidTraining, "_summed_loss", poisoned)
    monkeypatch.setattr(checkpoint_io.os, "fsync", slow)
    capsys.readouterr()
    run = tmp_path / "run"
    assert cli.main(words(config, run, *ASYNCHRONOUS)) == 1
    assert f"Last good checkpoint: {run / 'checkpoints' / 'last-step=3.ckpt'}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_run_ended_during_a_background_write_continues_to_the_same_bits(
    whole_run: tuple[Path, Path],
    start_fit: StartFit,
    finish_fit: FinishFit,
    slow_disk: list[str],
    tmp_path: Path,
    name: str,
) -> None:
    """A second passes until a file is on disk: SIGKILL meets the write, SIGTERM waits for it."""
    config, whole = whole_run
    run = tmp_path / "run"
    process = start_fit(*words(config, run, *ASYNCHRONOUS, *slow_disk)[1:], path=tmp_path)
    deadline = time.monotonic() + 600
    while not list((run / "checkpoints").glob(".*step=3.ckpt.in-progress")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, getattr(signal, name))
    status, _ = finish_fit(process)
    readable, unreadable = by_age(run / "checkpoints")
    assert ([damage(age.path) for age in readable], unreadable) == ([None] * len(readable), [])
    if name == "SIGKILL":
        assert (status, readable[0].step) == (-9, 2)
        assert list((run / "checkpoints").glob(".*step=3.ckpt.in-progress"))
    else:
        assert (status, readable[0].step) == (143, read_trace(run / "trace.jsonl")[-1]["step"])
    assert cli.main(words(config, run, *ASYNCHRONOUS, "--ckpt_path", "last")) == 0
    assert differences(read_trace(whole / "trace.jsonl"), read_trace(run / "trace.jsonl")) == []
    left, right = (load_file(one / "model" / "model.safetensors") for one in (whole, run))
    assert [weight for weight in left if not torch.equal(left[weight], right[weight])] == []
    assert not list((run / "checkpoints").glob(".*"))
