"""Runs that are killed, stopped, starved of disk or fed with broken numbers, through the real command line."""

import json
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longvid_train import cli
from longvid_train.training.checkpoint_io import damage
from longvid_train.training.last_checkpoint import read_age
from longvid_train.training.trace import TracedLine, differences, read_trace
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
TRACE = "longvid_train.training.trace.StateTrace"
ACCUMULATED = {
    "model__init_args__torch_threads": 1,  # the same bits in this process and in those it starts
    "data__init_args__loading": {"batch_size": 1, "num_workers": 0},
    "trainer__accumulate_grad_batches": 3,
}


def words(config: Path, run: Path, *more: str) -> list[str]:
    trace = [f"--trainer.callbacks+={TRACE}", f"--trainer.callbacks.path={run / 'trace.jsonl'}"]
    return ["fit", "--config", str(config), "--run_dir", str(run), *trace, *more]


def flip_a_bit(checkpoint: Path) -> None:
    """Damage the middle of the largest tensor (the middle of the file may be padding, which nothing reads)."""
    flipped = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    name_bytes, extra_bytes = struct.unpack_from("<HH", flipped, largest.header_offset + 26)
    flipped[largest.header_offset + 30 + name_bytes + extra_bytes + largest.file_size // 2] ^= 1
    checkpoint.unlink()
    checkpoint.write_bytes(flipped)


def wait_for(process: subprocess.Popen[str], trace: Path, micro_batches: int) -> None:
    deadline = time.monotonic() + 280
    while len(read_trace(trace)) < micro_batches:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.ckpt"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same_run(whole: Path, other: Path) -> None:
    assert differences(read_trace(whole / "trace.jsonl"), read_trace(other / "trace.jsonl")) == []
    left, right = weights(whole), weights(other)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    names = ("step", "epoch", "train/loss", "train/grad_norm", "train/lr")
    kept = [
        [[line[name] for name in names] for line in read_metrics(run) if "train/loss" in line] for run in (whole, other)
    ]
    assert kept[0] == kept[1]


@pytest.fixture(scope="module")
def whole_run(fit_config_in: FitConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config of 2 epochs of 12 micro-batches in steps of 3, and its run in one go."""
    folder = tmp_path_factory.mktemp("survival")
    config = fit_config_in(folder, **ACCUMULATED, trainer__max_epochs=2, checkpoint={"every_n_train_steps": 1})
    whole = folder / "whole"
    assert cli.main(words(config, whole)) == 0
    assert len(read_trace(whole / "trace.jsonl")) == 24
    return config, whole


def test_a_killed_run_continues_to_the_same_bits(
    whole_run: tuple[Path, Path], tmp_path: Path, start_fit: StartFit, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL in the middle of an accumulated step; then the newest checkpoint is damaged and the one before serves."""
    config, whole = whole_run
    run = tmp_path / "killed"
    process = start_fit(*words(config, run)[1:])
    wait_for(process, run / "trace.jsonl", 11)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (run / "model").exists()
    assert [damage(path) for path in checkpoints(run)] == [None] * len(checkpoints(run))
    lasts = sorted((run / "checkpoints").glob("last-step=*.ckpt"))
    assert len(lasts) == 2, "two states are kept, so that one damaged file does not end the run"
    steps = [int(path.stem.rpartition("=")[2]) for path in lasts]
    assert steps[1] == steps[0] + 1
    for path in (run / "checkpoints").glob(f"*step={steps[1]}.ckpt"):
        flip_a_bit(path)
    half_written = run / "checkpoints" / f".last-step={steps[1] + 1}.ckpt.in-progress"
    half_written.write_bytes(b"half")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 99, "train/lo')
    capsys.readouterr()
    assert cli.main(words(config, run, "--ckpt_path", "last")) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(f"falling back to last-step={steps[0]}.ckpt of step {steps[0]}" in line for line in lines) == 2
    assert [line for line in lines if "removed" in line and half_written.name in line]
    assert not half_written.exists()
    assert_same_run(whole, run)


def test_sigterm_finishes_the_step_and_says_how_to_continue(
    whole_run: tuple[Path, Path], tmp_path: Path, start_fit: StartFit, finish_fit: FinishFit
) -> None:
    config, whole = whole_run
    run = tmp_path / "stopped"
    process = start_fit(*words(config, run)[1:])
    wait_for(process, run / "trace.jsonl", 7)
    process.send_signal(signal.SIGTERM)
    status, lines = finish_fit(process)
    assert status == 143
    trace = read_trace(run / "trace.jsonl")
    step = trace[-1]["step"]
    assert len(trace) == 3 * step, "the step was finished"
    newest = run / "checkpoints" / f"last-step={step}.ckpt"
    assert damage(newest) is None
    assert len(lines) == 1, lines
    assert f"stopped by SIGTERM after step {step}; continue from {newest} with: " in lines[0]
    assert lines[0].endswith("--ckpt_path last")
    assert not (run / "model").exists(), "a stopped run has no export: it is not finished"
    assert cli.main(words(config, run, "--ckpt_path", "last")) == 0
    assert_same_run(whole, run)


def test_a_failure_inside_an_accumulated_step_costs_no_step(
    whole_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batch 10 of steps of 3 fails: the state of step 3 is saved although a micro-batch of step 4 was done."""
    from longvid_train.training.module import LlamaVidTraining

    config, whole = whole_run
    run = tmp_path / "failed"
    original = LlamaVidTraining.training_step

    def failing(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.fit_loop.epoch_loop.total_batch_idx == 10:
            raise ConnectionError("the network drive is gone")
        return original(self, batch, batch_idx)

    off = ["--checkpoint.every_n_train_steps", "100"]
    with monkeypatch.context() as patched:
        patched.setattr(LlamaVidTraining, "training_step", failing)
        assert cli.main(words(config, run, *off)) == 1
    (saved,) = checkpoints(run)
    assert saved.name == "last-step=3.ckpt"
    content = torch.load(saved, weights_only=False)
    (loader_state,) = content["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader_state["batches"] == 9, "the micro-batch of step 4 is not behind the saved state"
    assert content["ManifestDataModule"]["train"] == loader_state
    assert cli.main(words(config, run, "--ckpt_path", "last")) == 0
    assert_same_run(whole, run)


@pytest.mark.slow
def test_a_failure_inside_an_optimizer_step_saves_nothing(
    whole_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = whole_run
    run = tmp_path / "torn"
    original, calls = torch.optim.AdamW.step, []

    def tearing(self: Any, closure: Any = None) -> Any:
        calls.append(1)
        loss = original(self, closure)
        if len(calls) == 5:
            raise MemoryError("the weights have moved, the schedule has not")
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", tearing)
        assert cli.main(words(config, run)) == 1
    assert max(read_age(path).step for path in checkpoints(run)) == 4
    assert cli.main(words(config, run, "--ckpt_path", "last")) == 0
    assert_same_run(whole, run)


@pytest.mark.slow
def test_a_run_killed_during_its_export_is_exported_when_continued(
    fit_config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint has no step left: Lightning alone would neither export nor answer."""
    from longvid_train.training import callbacks

    config = fit_config(
        answers={"enabled": True, "max_new_tokens": 2},
        checkpoint={"every_n_train_steps": 1},
        model__init_args__rope_scaling=2.0,
    )
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert cli.main(words(config, whole)) == 0

    def killed(*_: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(callbacks, "save_folder", killed)
        assert cli.main(words(config, run)) == 1
    assert not (run / "model").exists()
    assert cli.main(words(config, run, "--ckpt_path", "last")) == 0
    assert_same_run(whole, run)
    assert json.loads((run / "model" / "config.json").read_text())["text_config"]["max_position_embeddings"] == 512
    assert (run / "answers_after.jsonl").read_text() == (whole / "answers_after.jsonl").read_text()


@pytest.mark.slow
def test_published_checkpoints_are_never_overwritten(whole_run: tuple[Path, Path], tmp_path: Path) -> None:
    """A run continued from an earlier checkpoint passes steps that are on disk, and goes on from its own last state."""
    config, whole = whole_run
    run = tmp_path / "branched"
    shutil.copytree(whole / "checkpoints", run / "checkpoints")
    (run / "run.json").write_text((whole / "run.json").read_text())
    before = {path: path.read_bytes() for path in checkpoints(run)}
    other = tmp_path / "other"
    keep_all = ["--checkpoint.keep_last", "-1", "--checkpoint.save_top_k", "-1"]
    assert cli.main(words(config, other, *keep_all, "--trainer.max_epochs", "1")) == 0
    for path in checkpoints(other):
        if path.name.startswith("last-step=2"):
            shutil.copy(path, run / "early.ckpt")
    assert cli.main(words(config, run, *keep_all, "--ckpt_path", str(run / "early.ckpt"))) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert "last-step=8-v1.ckpt" in {path.name for path in checkpoints(run)}


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_earlier_checkpoints_whole(
    whole_run: tuple[Path, Path], tmp_path: Path, start_fit: StartFit, finish_fit: FinishFit
) -> None:
    """The operating system refuses to grow a file beyond a limit that only checkpoints reach."""
    config, whole = whole_run
    run = tmp_path / "full"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints" / "last-step=7.ckpt", run / "checkpoints")
    before = {path: path.read_bytes() for path in checkpoints(run)}
    size = max(path.stat().st_size for path in before)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    process = start_fit(*words(config, run, "--ckpt_path", "last")[1:], preexec_fn=limited)
    status, lines = finish_fit(process)
    assert status == 2
    assert len(lines) == 1, lines
    assert "cannot write the checkpoint (File too large); make room" in lines[0]
    assert {path: path.read_bytes() for path in checkpoints(run)} == before
    assert not list((run / "checkpoints").glob(".*"))
    assert cli.main(words(config, run, "--ckpt_path", "last")) == 0
    left, right = weights(whole), weights(run)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def poisoned(step: int) -> Callable[..., Any]:
    """Weights of the projector become NaN in the forward pass of one micro-batch: a loss that is not finite."""
    from longvid_train.training.module import LlamaVidTraining

    original = LlamaVidTraining._summed_loss

    def summed(self: Any, batch: Any) -> tuple[torch.Tensor, int]:
        loss, tokens = original(self, batch)
        at = self.trainer.fit_loop.epoch_loop.total_batch_idx
        return (loss * math.nan if at == step else loss), tokens

    return summed


def test_nan_names_the_samples_and_the_last_good_checkpoint(
    whole_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from longvid_train.training.module import LlamaVidTraining

    config, whole = whole_run
    run = tmp_path / "nan"
    with monkeypatch.context() as patched:
        patched.setattr(LlamaVidTraining, "_summed_loss", poisoned(10))
        capsys.readouterr()
        assert cli.main(words(config, run)) == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if not one.startswith("step ")]
    expected: TracedLine = read_trace(whole / "trace.jsonl")[10]
    (sample_id,) = expected["sample_ids"]
    row = int(sample_id.removeprefix("row"))
    manifest = json.loads(config.read_text())["data"]["init_args"]["train"]
    place = f"{manifest}:{row + 1} (sample '{sample_id}')"
    newest = run / "checkpoints" / "last-step=3.ckpt"
    assert f"the loss is nan at step 3 for samples {place} (all in" in line
    assert f"Last good checkpoint: {newest}" in line
    report = json.loads((run / "nonfinite_step_3.json").read_text())
    assert report["samples"] == [place]
    assert report["micro_batches"] == [{"rank": 0, "loss_sum": "nan", "sample_ids": [sample_id]}]
    assert [damage(path) for path in checkpoints(run)] == [None] * len(checkpoints(run))
    assert max(read_age(path).step for path in checkpoints(run)) == 3
    assert not (run / "model").exists()
    assert [line["step"] for line in read_metrics(run)] == [0, 1, 2]
    assert cli.main(words(config, run, "--ckpt_path", "last")) == 0
    assert_same_run(whole, run)


def test_weights_that_are_not_finite_are_never_written(
    fit_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adam without ``eps`` divides 0 by 0 where a gradient is 0: loss and gradient are finite, the weights are not."""
    config = fit_config(model__init_args__optimizer={"lr": 1e-3, "eps": 0.0}, checkpoint={"every_n_train_steps": 1})
    run = tmp_path / "run"
    assert cli.main(words(config, run)) == 1
    assert "is not finite after step 1: nothing was saved" in capsys.readouterr().err
    assert checkpoints(run) == []


@pytest.mark.slow
def test_a_continued_run_follows_the_config_s_learning_rate(
    whole_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading an optimiser restores its old rate: ``--model.optimizer.lr`` would silently have no effect."""
    config, whole = whole_run
    run = tmp_path / "slower"
    shutil.copytree(whole / "checkpoints", run / "checkpoints")
    (newest,) = (run / "checkpoints").glob("last-step=7.ckpt")
    capsys.readouterr()
    assert cli.main(words(config, run, "--ckpt_path", str(newest), "--model.optimizer.lr", "1e-4")) == 0
    assert "continuing with optimizer lr 0.0001 instead of 0.001" in capsys.readouterr().err
    (old,) = [line["train/lr"] for line in read_metrics(whole) if line["step"] == 7]
    (new,) = [line["train/lr"] for line in read_metrics(run) if "train/lr" in line]
    assert new == pytest.approx(old / 10)
