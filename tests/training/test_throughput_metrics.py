"""Speed metrics with a clock that the test turns: exact numbers, no wall time."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.profilers import PassThroughProfiler, SimpleProfiler

from longvid_train import cli
from longvid_train.data.loader import ManifestLoader
from longvid_train.training.data_wait import FETCH, FetchTimer
from longvid_train.training.flops import PARTS, count_flops
from longvid_train.training.gradients import gradient_norms
from longvid_train.training.module import LlamaVidTraining
from longvid_train.training.peak_rate import PeakRate, known_rate, measured_rate, peak_rate
from longvid_train.training.throughput import Throughput, speed_metrics
from longvid_train.training.tracking import read_metrics

FitConfig = Callable[..., Path]
CPU = torch.device("cpu")


class Clock:
    """Stands still until told to move."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_metrics_of_a_step() -> None:
    flops = dict.fromkeys(PARTS, 0.0) | {"vision_tower": 100.0, "language_model": 300.0}
    counts = {"samples": 4.0, "tokens": 90.0, "frames": 20.0, "slots": 120.0, **flops}
    assert speed_metrics(counts, step_s=2.0, wait_s=0.5, peak_flops_per_s=1000.0) == {
        "step_s": 2.0,
        "data_wait_s": 0.5,
        "data_wait_share": 0.25,
        "tokens_per_s": 45.0,
        "frames_per_s": 10.0,
        "samples_per_s": 2.0,
        "padding_share": 0.25,
        "flops": 400.0,
        "flops/vision_tower": 100.0,
        "flops/language_model": 300.0,
        "mfu": 0.2,
        "mfu_without_wait": pytest.approx(400 / 1500),
    }
    assert not [name for name in speed_metrics(counts, step_s=2.0, wait_s=0.5, peak_flops_per_s=None) if "mfu" in name]


def test_only_fetches_of_the_training_loader_count_as_waiting(clock: Clock) -> None:
    inner = SimpleProfiler()
    timer = FetchTimer(inner, clock)
    for action, seconds in (
        (FETCH, 2.0),
        ("run_training_batch", 5.0),
        (FETCH, 0.25),
        ("[_EvaluationLoop].val_next", 7),
    ):
        with timer.profile(action):
            clock.pass_(seconds)
    assert timer.ended_s == 107.25
    assert timer.take() == 2.25
    assert timer.take() == 0.0
    assert len(inner.recorded_durations[FETCH]) == 2
    assert FETCH in timer.summary()


def test_known_accelerators_have_dense_rates_with_a_source() -> None:
    expected = {
        ("NVIDIA A100-SXM4-80GB", "bfloat16"): 312e12,
        ("NVIDIA A100-SXM4-80GB", "float32"): 19.5e12,
        ("NVIDIA H100 80GB HBM3", "bfloat16"): 989.4e12,
        ("NVIDIA H100 80GB HBM3", "tf32"): 494.7e12,
        ("NVIDIA H200", "float16"): 989.4e12,
        ("NVIDIA H100 PCIe", "bfloat16"): 756.5e12,
        ("NVIDIA L40S", "tf32"): 183e12,
        ("NVIDIA GeForce RTX 4090", "bfloat16"): 165.15e12,
    }
    for (name, compute), rate in expected.items():
        known = known_rate(name, compute)  # type: ignore[arg-type]
        assert known is not None
        assert known.flops_per_s == pytest.approx(rate)
        assert re.match(rf"{name}, {compute}: .*\b[a-z.]+\.(com|se|jp|cz)/[a-z]", known.source), (
            "a page that can be read"
        )
    assert known_rate("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bfloat16") is None
    assert known_rate("NVIDIA H200", "float64") is None


def test_an_unknown_device_is_measured_and_says_so() -> None:
    ticks = iter([0.0, 1.0, 10.0, 10.5, 20.0, 24.0, 30.0, 31.0, 40.0, 41.0, 50.0, 51.0])
    state = torch.get_rng_state()
    rate = measured_rate(CPU, "cpu", "float32", lambda: next(ticks))
    assert rate.flops_per_s == 2 * 1024**3 / 0.5
    assert "measured here, the fastest of 6 products of 1024 x 1024" in rate.source
    assert f"{torch.get_num_threads()} threads" in rate.source
    assert torch.equal(state, torch.get_rng_state())
    assert peak_rate(CPU, "transformer-engine") is None


def test_gradient_norms_by_part_add_up() -> None:
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(1, 1), "frozen": torch.nn.Linear(3, 3)}
    )
    assert gradient_norms(model) == {}
    model["a"].weight.grad, model["a"].bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    model["b"].weight.grad = torch.tensor([[12.0]])
    assert gradient_norms(model) == {"a": 5.0, "b": 12.0}


def test_rates_of_groups_are_logged_where_they_differ() -> None:
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(log_dict=lambda values, batch_size: logged.update(values))
    weight = torch.nn.Parameter(torch.zeros(1))
    other = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [weight]}, {"params": [other]}], lr=1e-3)
    trainer: Any = None
    Throughput().on_before_optimizer_step(trainer, module, optimizer)
    assert logged == {}
    optimizer.param_groups[1]["lr"] = 5e-4
    Throughput().on_before_optimizer_step(trainer, module, optimizer)
    assert logged == {"train/lr/group_0": 1e-3, "train/lr/group_1": 5e-4}


def test_a_run_s_steps_have_exact_times_rates_and_flops(
    fit_config: FitConfig, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader takes 1 s a batch, the forward pass 3 s; two micro-batches a step, so 2 s of 8 s are waiting."""
    originals = {"training_step": LlamaVidTraining.training_step, "iter": ManifestLoader.__iter__}
    flops: list[int] = []

    def slow_step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        from longvid_train.training.work import work_of

        clock.pass_(3.0)
        flops.append(sum(part.total for part in count_flops(self.model, work_of(batch, self.model.config)).values()))
        return originals["training_step"](self, batch, batch_idx)

    def slow_batches(self: Any) -> Iterator[Any]:
        for batch in originals["iter"](self):
            clock.pass_(1.0)
            yield batch

    monkeypatch.setattr(LlamaVidTraining, "training_step", slow_step)
    monkeypatch.setattr(ManifestLoader, "__iter__", slow_batches)
    monkeypatch.setattr(
        "longvid_train.training.cli.Throughput",
        lambda: Throughput(clock=clock, peak=PeakRate(flops_per_s=1e6, source="a test")),
    )
    config = fit_config(answers={"enabled": True, "max_new_tokens": 2, "every_n_steps": 1})
    assert cli.main(["fit", "--config", str(config), "--trainer.accumulate_grad_batches", "2"]) == 0
    lines = [line for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert len(lines) == 3
    assert len(flops) == 6
    for index, line in enumerate(lines):
        work = flops[2 * index] + flops[2 * index + 1]
        assert line["train/step_s"] == 8.0
        assert line["train/data_wait_s"] == 2.0
        assert line["train/data_wait_share"] == 0.25
        assert line["train/samples_per_s"] == 4 / 8
        assert line["train/frames_per_s"] == 8 / 8
        assert line["train/flops"] == work
        assert sum(line.get(f"train/flops/{part}", 0) for part in PARTS) == work
        assert line["train/mfu"] == pytest.approx(work / 8e6)
        assert line["train/mfu_without_wait"] == pytest.approx(work / 6e6)
        assert line["train/peak_bytes"] > 2**26
        parts = [line[f"train/grad_norm/{part}"] for part in PARTS if part != "vision_tower"]
        assert line["train/grad_norm"] == pytest.approx(sum(norm**2 for norm in parts) ** 0.5)
        assert "train/grad_norm/vision_tower" not in line
    answered = sorted(path.name for path in (tmp_path / "run").glob("answers_step_*.jsonl"))
    assert answered == ["answers_step_1.jsonl", "answers_step_2.jsonl", "answers_step_3.jsonl"]
    start = json.loads((tmp_path / "run" / "run.json").read_text())["starts"][0]
    assert (start["peak_flops_per_s"], start["peak_source"]) == (1e6, "a test")


def test_the_trainer_gets_its_profiler_back(clock: Clock) -> None:
    profiler = PassThroughProfiler()
    trainer: Any = SimpleNamespace(profiler=profiler)
    module: Any = SimpleNamespace()
    callback = Throughput(clock=clock, peak=PeakRate(flops_per_s=1.0, source="a test"))
    callback.on_fit_start(trainer, module)
    assert trainer.profiler is profiler
    callback._timer = FetchTimer(profiler, clock)
    trainer.profiler = callback._timer
    callback.on_fit_end(trainer, module)
    assert trainer.profiler is profiler


def test_sums_over_ranks_and_the_slowest_rank_s_time() -> None:
    """Rank 0 waited longest, rank 1 has most tokens; the strategy's reduce is played by the test."""

    class TwoRanks:
        def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
            other = {"sum": tensor * 3, "max": tensor * 2}[reduce_op]
            return tensor + other if reduce_op == "sum" else torch.maximum(tensor, other)

    trainer: Any = SimpleNamespace(strategy=TwoRanks())
    callback = Throughput(peak=PeakRate(flops_per_s=1.0, source="a test"))
    callback._peak_flops_per_s = 10.0
    callback._window.compute_s, callback._window.wait_s = 3.0, 1.0
    callback._window.counts |= {"tokens": 8, "slots": 8, "samples": 1, "frames": 2, "language_model": 40}
    metrics = callback._metrics(trainer, CPU)
    assert metrics["train/step_s"] == 8.0
    assert metrics["train/data_wait_s"] == 2.0
    assert metrics["train/tokens_per_s"] == 4.0
    assert metrics["train/mfu"] == 160 / 80


@pytest.mark.slow
def test_two_ranks_count_what_one_counts(fit_config: FitConfig, tmp_path: Path) -> None:
    stage = {"name": "s", "trainable": ["context_attention", "content_projector", "language_model"]}
    config = fit_config(model__init_args__stage=stage)
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(["fit", "--config", str(config), "--run_dir", str(one), "--data.loading.batch_size", "4"]) == 0
    ranks = ["--run_dir", str(two), "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    assert cli.main(["fit", "--config", str(config), *ranks]) == 0
    lines = [[line for line in read_metrics(run) if "train/loss" in line] for run in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 3
    for left, right in zip(*lines, strict=True):
        for part in PARTS:
            assert left[f"train/flops/{part}"] == right[f"train/flops/{part}"]
        for name in ("tokens", "frames", "samples"):
            done = [line[f"train/{name}_per_s"] * line["train/step_s"] for line in (left, right)]
            assert done[0] == pytest.approx(done[1])
