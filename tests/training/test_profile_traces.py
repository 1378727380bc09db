"""Traces of ranks, written by hand, divided into parts of a step; waiting for ranks told from transfer."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.profilers import SimpleProfiler

from longvid_train.training.data_wait import EPOCH, FETCH
from longvid_train.training.profiling import marks
from longvid_train.training.profiling.callback import shortest_lengths_s
from longvid_train.training.profiling.intervals import NONE, spans
from longvid_train.training.profiling.marks import Part, PartMarks, part_of_action
from longvid_train.training.profiling.parts import collective_lengths_s, rank_parts_s
from longvid_train.training.profiling.trace import RankTrace, read_trace

MAIN, OTHER_THREAD = 7, 8


def event(category: str, name: str, start_s: float, end_s: float, thread: int = MAIN, **args: Any) -> dict[str, Any]:
    times = {"ts": start_s * 1e6, "dur": (end_s - start_s) * 1e6}
    return {"ph": "X", "cat": category, "name": name, "tid": thread, "args": args, **times}


def mark(name: str, start_s: float, end_s: float) -> dict[str, Any]:
    return event("user_annotation", f"longvid::{name}", start_s, end_s)


def read(folder: Path, events: list[dict[str, Any]]) -> RankTrace:
    path = folder / "rank0.trace.json.gz"
    with gzip.open(path, "wt") as stream:
        json.dump({"traceEvents": [{"ph": "M", "name": "process_name"}, *events]}, stream)
    return read_trace(path)


def parts(trace: RankTrace, shortest_s: list[float] | None = None) -> dict[str, float]:
    own = collective_lengths_s(trace)
    shares = rank_parts_s(trace, own if shortest_s is None else np.array(shortest_s))
    assert sum(shares.values()) == pytest.approx(trace.window[1] - trace.window[0])
    return {str(part): round(seconds, 9) for part, seconds in shares.items() if seconds > 1e-9}


CPU_STEP = [
    mark("window", 0, 20),
    mark("data_wait", 0, 4),
    event("cpu_op", "aten::mul", 1, 2),
    mark("optimizer", 4, 17),
    mark("forward", 5, 8),
    mark("backward", 8, 14),
    event("cpu_op", "autograd::engine::evaluate_function: AccumulateGrad", 8, 14),
    event("cpu_op", "aten::mm", 9, 11),
    event("cpu_op", "aten::mm", 9, 12, OTHER_THREAD),
    event("user_annotation", "gloo:all_reduce", 10, 13, OTHER_THREAD),
    event("cpu_op", "c10d::allreduce_", 18, 18.5),
    event("user_annotation", "gloo:all_reduce", 18, 19, OTHER_THREAD),
    event("user_annotation", "gloo:barrier", -2, -1, OTHER_THREAD),
]


def test_on_a_cpu_communication_counts_where_the_main_thread_computes_nothing(tmp_path: Path) -> None:
    """3 s of a collective, the first of which is hidden, and 1 s of another outside of all marks. The optimiser's mark
    without what lies in it is 4 to 5 and 14 to 17."""
    trace = read(tmp_path, CPU_STEP)
    assert trace.collective_names == ("gloo:all_reduce", "gloo:all_reduce")
    assert not trace.on_accelerator
    whole = {"data_wait": 4.0, "forward": 3.0, "backward": 4.0, "optimizer": 4.0, "communication": 3.0, "other": 2.0}
    assert parts(trace) == whole


def test_waiting_for_a_late_rank_is_the_start_of_a_collective(tmp_path: Path) -> None:
    """On the rank that came last the first took 0.5 s and the second 0.25 s: the rest of the 2 and 1 s that are exposed
    here was spent waiting for it."""
    shares = parts(read(tmp_path, CPU_STEP), [0.5, 0.25])
    assert shares["communication"] == 0.75
    assert shares["waiting_for_ranks"] == 2.25
    late = parts(read(tmp_path, CPU_STEP), [9.0, 9.0])
    assert late["communication"] == 3.0, "no longer than it took here"


def kernel(name: str, start_s: float, end_s: float, launched_s: float, number: int, category: str = "kernel") -> Any:
    return [
        event("cuda_runtime", "cudaLaunchKernel", launched_s, launched_s + 0.01, OTHER_THREAD, correlation=number),
        event(category, name, start_s, end_s, 70, correlation=number),
    ]


def test_on_an_accelerator_kernels_decide_and_belong_to_the_part_that_launched_them(tmp_path: Path) -> None:
    """The loader is asked while the backward pass still runs: that wait costs nothing."""
    trace = read(
        tmp_path,
        [
            mark("window", 0, 20),
            mark("forward", 0, 2),
            mark("backward", 2, 4),
            mark("data_wait", 4, 12),
            mark("host_to_device", 12, 13),
            mark("optimizer", 13, 16),
            *kernel("gemm", 1, 3, 0.5, 1),
            *kernel("gemm_backward", 3, 6, 2.5, 2),
            *kernel("ncclDevKernel_AllReduce_Sum_f32", 5, 9, 3.5, 3),
            *kernel("Memcpy HtoD (Pinned -> Device)", 12, 12.5, 12, 4, "gpu_memcpy"),
            *kernel("Memset (Device)", 14, 15, 13.5, 5, "gpu_memset"),
            *kernel("logging", 17, 18, 16.5, 6),
        ],
    )
    assert trace.on_accelerator
    assert parts(trace, [3.0]) == {
        "forward": 2.0,
        "backward": 3.0,
        "communication": 3.0,
        "data_wait": 3.0,
        "host_to_device": 1.0,
        "optimizer": 1.0,
        "host": 1.0 + 2.0,
        "other": 4.0,
    }
    late = parts(trace, [1.0])
    assert (late["communication"], late["waiting_for_ranks"]) == (1.0, 2.0)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.integers(0, 9)), max_size=5))
def test_waiting_and_transfer_are_the_exposed_time_whatever_the_other_ranks_did(
    drawn: list[tuple[int, int, int]],
) -> None:
    """``(start, length, shortest)`` of collectives over a computation from 5 to 12."""
    trace = RankTrace(
        window=(0.0, 40.0),
        marks={Part.BACKWARD: spans([(0.0, 40.0)])},
        computing={Part.BACKWARD: spans([(5.0, 12.0)])},
        copying=NONE,
        collectives=spans([(start, start + size) for start, size, _ in drawn]),
        collective_names=("gloo:all_reduce",) * len(drawn),
        on_accelerator=False,
    )
    shares = rank_parts_s(trace, np.array([float(shortest) for *_, shortest in drawn]))
    exposed = {cell for start, size, _ in drawn for cell in range(start, start + size)} - set(range(5, 12))
    moved = {
        cell for start, size, least in drawn for cell in range(start + size - min(least, size), start + size)
    } - set(range(5, 12))
    assert shares[Part.COMMUNICATION] == len(moved)
    assert shares[Part.WAITING] == len(exposed - moved)
    assert shares[Part.BACKWARD] == 40 - len(exposed)


class Ranks:
    """Plays the strategy of one rank: ``others`` are the tensors that another rank brings to each reduction."""

    root_device = torch.device("cpu")

    def __init__(self, others: list[list[float]]) -> None:
        self._others = others

    def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        return torch.maximum(tensor, torch.tensor(self._others.pop(0), dtype=tensor.dtype))


def test_the_shortest_of_each_collective_over_the_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here they take 3 and 1 s, on the other rank 2 and 5 s."""
    trace = read(tmp_path, CPU_STEP)
    same = float(zlib.crc32(b"gloo:all_reduce\ngloo:all_reduce"))
    ranks: Any = Ranks([[-same, same], [-2.0, -5.0]])
    assert shortest_lengths_s(ranks, trace) == pytest.approx([2.0, 1.0])
    assert capsys.readouterr().err == ""
    others: Any = Ranks([[-(same + 1), same + 1]])
    assert shortest_lengths_s(others, trace) == pytest.approx([3.0, 1.0])
    assert "the ranks' traces differ in their collectives; waiting for ranks is counted as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("action", "part"),
    [
        (FETCH, Part.DATA),
        ("[Strategy]DDPStrategy.batch_to_device", Part.COPY),
        ("[Strategy]ZeroStrategy.training_step", Part.FORWARD),
        ("[Strategy]SingleDeviceStrategy.backward", Part.BACKWARD),
        ("[LightningModule]LlamaVidTraining.optimizer_step", Part.OPTIMIZER),
        ("save_checkpoint", Part.CHECKPOINT),
        ("[Strategy]DDPStrategy.validation_step", None),
        ("[Callback]AnswerAccuracy.on_train_batch_end", None),
        ("[Strategy]DDPStrategy.on_train_batch_start", None),
    ],
)
def test_lightning_s_actions_are_parts(action: str, part: Part | None) -> None:
    assert part_of_action(action) is part


def test_marks_open_and_close_with_the_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch begins with a wait for data that ends where its first fetch begins."""
    seen: list[str] = []

    class Recorded:
        def __init__(self, name: str) -> None:
            self.name = name.removeprefix("longvid::")

        def __enter__(self) -> None:
            seen.append(f"<{self.name}")

        def __exit__(self, *_: Any) -> None:
            seen.append(f"{self.name}>")

    monkeypatch.setattr(marks, "record_function", Recorded)
    inner = SimpleProfiler()
    profiler = PartMarks(inner)
    inner.start("began before")
    with profiler.profile(EPOCH):
        for _ in range(2):
            with profiler.profile(FETCH):
                pass
            with profiler.profile("[LightningModule]M.optimizer_step"), profiler.profile("[Strategy]S.backward"):
                pass
    profiler.stop("began before")
    step = ["<data_wait", "data_wait>", "<optimizer", "<backward", "backward>", "optimizer>"]
    assert seen == ["<data_wait", "data_wait>", *step, *step]
    assert len(inner.recorded_durations[FETCH]) == 2 and len(inner.recorded_durations["began before"]) == 1
