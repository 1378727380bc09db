"""Real runs that are bound by data, computation, communication or a slow rank: each profile says so."""

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import Profiler

from longvid_train import cli
from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration
from longvid_train.training.data_wait import FetchTimer
from longvid_train.training.module import LlamaVidTraining
from longvid_train.training.peak_rate import PeakRate
from longvid_train.training.profiling.marks import Part, PartMarks
from longvid_train.training.profiling.trace import RankTrace, read_trace
from longvid_train.training.throughput import Throughput
from longvid_train.training.tracking import read_metrics
from longvid_train.video import read_clip

FitConfig = Callable[..., Path]
StartFit = Callable[..., "subprocess.Popen[str]"]
FinishFit = Callable[["subprocess.Popen[str]"], tuple[int, list[str]]]
ZERO = Path(__file__).parents[2] / "configs" / "deepspeed"
WORK_ON_RANK_1 = """
import torch
from pytorch_lightning.callbacks import Callback


class Burden(Callback):
    '''Rank 1 computes for seconds in its forward pass.'''

    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank == 1:
            self.hook = pl_module.model.register_forward_pre_hook(burn)
            pl_module.model.language_model.register_forward_pre_hook(burn)


def burn(module, words):
    matrix = torch.ones(700, 700)
    for _ in range(60):
        matrix = matrix @ matrix / 700
"""


DECODE_S = 10.0
EVENT_S = 1e-6


class DecodingClock:
    """Seconds that only decoding takes, in the run and in its trace: each video `DECODE_S`.

    In the trace the start and end of any event take `EVENT_S`, so that what holds events has a length.
    """

    mark = "the test decodes"

    def __init__(self, decode: Callable[..., Any]) -> None:
        self.now_s = 0.0
        self._decode = decode

    def __call__(self) -> float:
        return self.now_s

    def decode(self, *arguments: Any, **options: Any) -> Any:
        """Decode within a mark."""
        self.now_s += DECODE_S
        with torch.profiler.record_function(self.mark):
            return self._decode(*arguments, **options)

    def read_trace(self, path: Path) -> RankTrace:
        """Read a trace in which events lie as they lay in each other and behind each other, by this clock."""
        trace = json.loads(gzip.decompress(path.read_bytes()))
        events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
        bounds = np.array([[event["ts"], event["ts"] + event["dur"]] for event in events])
        decoded = bounds[[event["name"] == self.mark for event in events]]
        assert len(decoded) == 2  # one video a step of the window
        share = (bounds[..., None] - decoded[:, 0]) / (decoded[:, 1] - decoded[:, 0])
        new_us = 1e6 * (DECODE_S * share.clip(0, 1).sum(-1) + EVENT_S * np.searchsorted(np.unique(bounds), bounds))
        for event, (start_us, end_us) in zip(events, new_us.tolist(), strict=True):
            event |= {"ts": start_us, "dur": end_us - start_us}
        path.write_bytes(gzip.compress(json.dumps(trace).encode()))
        return read_trace(path)


def wider_model(base: Path, folder: Path, **sizes: int) -> Path:
    """The tiny model with another language model."""
    shutil.copytree(base, folder)
    config = LlamaVidConfig.from_pretrained(base)
    values = config.to_dict()
    values["text_config"] |= sizes
    torch.manual_seed(0)
    LlamaVidForConditionalGeneration(LlamaVidConfig.from_dict(values)).save_pretrained(folder)
    return folder


def long_texts(world: Any, rows: int, words: int) -> Path:
    answer = {"role": "assistant", "text": " ".join(["red"] * words)}
    conversation = [{"role": "user", "text": "what is the colour ?"}, answer]
    path: Path = world.write("long.jsonl", [{"id": f"{row}", "conversation": conversation} for row in range(rows)])
    return path


def report(run: Path, steps: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "profile" / f"steps_{steps}.json").read_text())
    return found


class ProfilersSeen(pl.Callback):
    """What the trainer's profiler was, and whether torch's ran, when each micro-batch began."""

    def __init__(self) -> None:
        self.seen: list[tuple[type[Profiler], bool]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append((type(trainer.profiler), torch._C._autograd._profiler_enabled()))


def test_a_run_that_decodes_for_long_waits_for_data(
    fit_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the metrics say; and nothing is wrapped or recorded outside of the window."""
    watcher, clock = ProfilersSeen(), DecodingClock(read_clip)
    monkeypatch.setattr("longvid_train.training.cli.FinishedRun", lambda: watcher)
    monkeypatch.setattr("longvid_train.data.media.read_clip", clock.decode)
    monkeypatch.setattr("longvid_train.training.profiling.callback.read_trace", clock.read_trace)
    peak = PeakRate(flops_per_s=1e6, source="a test")
    monkeypatch.setattr("longvid_train.training.cli.Throughput", lambda: Throughput(clock=clock, peak=peak))
    config = fit_config(
        data__init_args__media={"sampling": {"count": 2}, "cache_bytes": 0},
        data__init_args__loading={"batch_size": 1},
        trainer__max_steps=4,
    )
    run = tmp_path / "run"
    assert cli.main(["fit", "--config", str(config), "--profile", "{after_steps: 1, steps: 2}"]) == 0
    found = report(run, "2-3")
    assert found["verdict"]["cause"] == "data", found
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("longvid: ")]
    assert line.startswith("longvid: profile of steps 2 to 3: waits for data: ")
    assert "raise data.loading.num_workers (now 0)" in line
    (seconds,) = found["seconds_per_step"]
    waited_s = [step["train/data_wait_s"] for step in read_metrics(run) if "train/loss" in step]
    assert waited_s == [DECODE_S] * 4
    assert seconds["data_wait"] == pytest.approx(DECODE_S, rel=0.01)
    assert sum(seconds[str(part)] for part in Part) == pytest.approx(DECODE_S, rel=0.05)
    assert min(seconds[name] for name in ("forward", "backward", "optimizer")) > 10 * EVENT_S
    assert not any(seconds[name] for name in ("communication", "waiting_for_ranks", "host", "validation"))
    assert watcher.seen == [(FetchTimer, False), (PartMarks, True), (PartMarks, True), (FetchTimer, False)]
    assert {path.name for path in (run / "profile").iterdir()} == {
        "steps_2-3.json",
        "steps_2-3.md",
        "steps_2-3_rank0.trace.json.gz",
    }


def test_validation_and_checkpoints_are_parts_of_their_own(fit_config: FitConfig, world: Any, tmp_path: Path) -> None:
    """Here the window is the whole run."""
    rows = str(long_texts(world, 4, 10))
    config = fit_config(
        data__init_args__train=rows,
        data__init_args__val=rows,
        trainer__max_steps=2,
        trainer__val_check_interval=1,
        trainer__limit_val_batches=1,
        checkpoint={"every_n_train_steps": 1},
        profile={"after_steps": 0, "steps": 2},
    )
    assert cli.main(["fit", "--config", str(config)]) == 0
    (seconds,) = report(tmp_path / "run", "1-2")["seconds_per_step"]
    spent = {name for name, value in seconds.items() if value > 0}
    assert spent >= {"data_wait", "forward", "backward", "optimizer", "checkpoint", "validation", "other"}
    assert not spent & {"communication", "waiting_for_ranks", "host"}


@pytest.mark.slow
def test_a_run_of_long_texts_is_bound_by_computation(
    fit_config: FitConfig, world: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Seconds of computation a step, and tenths of one for all else."""
    model = wider_model(tiny_model_folder, tmp_path / "wide", hidden_size=256, intermediate_size=1024)
    config = fit_config(
        model__init_args__model=str(model),
        data__init_args__train=str(long_texts(world, 64, 200)),
        data__init_args__loading={"batch_size": 16},
        trainer__max_steps=4,
        profile={"after_steps": 2, "steps": 2},
    )
    assert cli.main(["fit", "--config", str(config)]) == 0
    found = report(tmp_path / "run", "3-4")
    assert found["verdict"]["cause"] == "compute", found


def test_mistakes_are_one_line_before_weights_load(
    fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LlamaVidTraining, "load", lambda self: pytest.fail("weights were loaded"))
    config = fit_config(trainer__max_steps=5)
    for words, expected in (
        (["--profile.steps", "0"], "profile.steps is 0; it must be at least 1"),
        (["--profile.after_steps=-1"], "profile.after_steps is -1; it must be at least 0"),
        (
            ["--profile", "{after_steps: 3, steps: 3}"],
            "the profile's window ends with step 6, and trainer.max_steps is 5; lower profile.after_steps or "
            "profile.steps, or raise trainer.max_steps",
        ),
    ):
        assert cli.main(["fit", "--config", str(config), *words]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"longvid: {expected}"


@pytest.mark.slow
def test_a_profile_changes_nothing(fit_config: FitConfig, tmp_path: Path) -> None:
    config = fit_config()
    runs = [tmp_path / "run", tmp_path / "plain"]
    for run, words in zip(runs, (["--profile", "{after_steps: 1, steps: 2}"], []), strict=True):
        assert cli.main(["fit", "--config", str(config), "--run_dir", str(run), *words]) == 0
        assert (run / "profile").exists() == bool(words)
    losses = [[line["train/loss"] for line in read_metrics(run) if "train/loss" in line] for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.gpu
def test_on_a_gpu_the_parts_are_those_of_its_kernels(
    fit_config: FitConfig, world: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """A tiny model leaves a GPU waiting for Python."""
    config = fit_config(trainer__accelerator="gpu", trainer__max_steps=4, profile={"after_steps": 1, "steps": 3})
    assert cli.main(["fit", "--config", str(config)]) == 0
    found = report(tmp_path / "run", "2-4")
    (seconds,) = found["seconds_per_step"]
    assert found["device"].startswith("cuda")
    assert min(seconds[name] for name in ("forward", "backward", "optimizer", "host")) > 0
    assert seconds["host"] > seconds["forward"] + seconds["backward"] + seconds["optimizer"]


def two_ranks(config: Path, run: Path, *words: str) -> list[str]:
    return ["--config", str(config), *words, "--run_dir", str(run), "--trainer.devices", "2"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("words", [["--trainer.strategy", "ddp"], ["--config", str(ZERO / "zero2.yaml")]])
def test_two_hosts_with_a_slow_cable_wait_for_communication(
    words: list[str], fit_config: FitConfig, two_hosts: Any, world: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    """1.3 million float32 gradients a step over 20 Mbit/s are 2 s at the least, in which little else is done."""
    two_hosts.slow_cable("20mbit")
    model = wider_model(tiny_model_folder, tmp_path / "words", vocab_size=40_000)
    config = fit_config(
        model__init_args__model=str(model),
        data__init_args__train=str(long_texts(world, 12, 2)),
        data__init_args__loading={"batch_size": 1},
        trainer__max_steps=3,
        profile={"after_steps": 1, "steps": 2},
    )
    run = tmp_path / "run"
    errors, _ = two_hosts.fit("--config", str(config), *words, "--run_dir", str(run))
    found = report(run, "2-3")
    assert found["verdict"]["cause"] == "communication", found
    assert "longvid: profile of steps 2 to 3: waits for communication: " in errors
    assert len(list((run / "profile").glob("*_rank?.trace.json.gz"))) == len(found["seconds_per_step"]) == 2
    for seconds in found["seconds_per_step"]:
        assert seconds["communication"] > 2.0
        assert seconds["communication"] > 2 * seconds["waiting_for_ranks"]


@pytest.mark.slow
def test_a_rank_with_more_work_is_named(
    fit_config: FitConfig, tmp_path: Path, start_fit: StartFit, finish_fit: FinishFit
) -> None:
    (tmp_path / "burden.py").write_text(WORK_ON_RANK_1)
    config = fit_config(
        data__init_args__loading={"batch_size": 1}, trainer__max_steps=3, profile={"after_steps": 1, "steps": 2}
    )
    run = tmp_path / "run"
    words = ["--trainer.strategy", "ddp", "--trainer.callbacks+=burden.Burden"]
    status, lines = finish_fit(start_fit(*two_ranks(config, run), *words, path=tmp_path))
    assert status == 0, lines
    found = report(run, "2-3")
    assert (found["verdict"]["cause"], found["verdict"]["rank"]) == ("other ranks", 1), found
    waiting, working = found["seconds_per_step"]
    assert waiting["waiting_for_ranks"] > 0.5 * working["forward"]
    assert waiting["waiting_for_ranks"] > 3 * waiting["communication"]
    assert [sum(seconds[str(part)] for part in Part) for seconds in (waiting, working)] == [
        pytest.approx(sum(working.values()), rel=0.3)
    ] * 2
