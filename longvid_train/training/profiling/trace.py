"""What a rank did in its window, read from the Chrome trace that ``torch.profiler`` exports.

Times are seconds on the trace's clock. Categories and names are those of Kineto and of PyTorch's process groups:
operators are ``cpu_op``, a gloo collective is a ``user_annotation`` named ``gloo:<collective>`` on a thread of its own,
kernels are ``kernel`` with the ``correlation`` of the call that launched them, NCCL's are named ``nccl...``.
"""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvid_train.training.profiling.intervals import NONE, Spans, common, covers, spans, without
from longvid_train.training.profiling.marks import MARK, WINDOW, Part

_DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_COLLECTIVES = {"user_annotation": "gloo:", "kernel": "nccl"}
_US = 1e-6


@dataclass(frozen=True, kw_only=True)
class RankTrace:
    """One rank's window.

    Attributes:
        window: its start and end.
        marks: where the main thread was, by part; marks may lie in each other.
        computing: when the device computed, by the part that asked for it: operators on the main thread of a CPU run,
            kernels of an accelerator. Collectives are not in it.
        copying: when an accelerator copied from the host.
        collectives: ``(n, 2)``, each collective in the order in which they began.
        collective_names: what each is.
        on_accelerator: whether kernels ran: the main thread's time is then not the device's.
    """

    window: tuple[float, float]
    marks: dict[Part, Spans]
    computing: dict[Part, Spans]
    copying: Spans
    collectives: Spans
    collective_names: tuple[str, ...]
    on_accelerator: bool


def read_trace(path: Path) -> RankTrace:
    """Read a trace that holds one marked window.

    Args:
        path: ``.json.gz``, as ``torch.profiler.profile.export_chrome_trace`` writes it.
    """
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        events = [event for event in json.load(stream)["traceEvents"] if event.get("ph") == "X"]
    (window,) = [event for event in events if _is_mark(event, WINDOW)]
    bounds = (window["ts"] * _US, (window["ts"] + window["dur"]) * _US)
    marks = {part: _spans(event for event in events if _is_mark(event, part)) for part in Part}
    marks = {part: marked for part, marked in marks.items() if len(marked)}
    own = _innermost(marks)
    device_work = [event for event in events if event.get("cat") in _DEVICE_WORK]
    if device_work:
        computing, copying = _by_launch(events, device_work, own)
    else:
        operators = (event for event in events if event.get("cat") == "cpu_op" and event["tid"] == window["tid"])
        computed = _spans(event for event in operators if event["name"].startswith("aten::"))
        computing, copying = {part: common(computed, marked) for part, marked in own.items()}, NONE
    collectives = sorted((event for event in events if _is_collective(event, bounds)), key=lambda event: event["ts"])
    return RankTrace(
        window=bounds,
        marks=own,
        computing=computing,
        copying=copying,
        collectives=_spans(collectives),
        collective_names=tuple(event["name"] for event in collectives),
        on_accelerator=bool(device_work),
    )


def _spans(events: Iterable[dict[str, Any]]) -> Spans:
    return spans([(event["ts"] * _US, (event["ts"] + event["dur"]) * _US) for event in events])


def _is_mark(event: dict[str, Any], name: str) -> bool:
    return event.get("cat") == "user_annotation" and event["name"] == MARK + name


def _is_collective(event: dict[str, Any], window: tuple[float, float]) -> bool:
    prefix = _COLLECTIVES.get(event.get("cat", ""))
    begins_inside = window[0] <= event["ts"] * _US < window[1]
    return prefix is not None and event["name"].startswith(prefix) and begins_inside


def _innermost(marks: dict[Part, Spans]) -> dict[Part, Spans]:
    """Marks without what other marks inside them cover: only the optimiser's step has any."""
    if Part.OPTIMIZER not in marks:
        return marks
    inner = [marked for part, marked in marks.items() if part is not Part.OPTIMIZER]
    return marks | {Part.OPTIMIZER: without(marks[Part.OPTIMIZER], np.concatenate([NONE, *inner]))}


def _by_launch(
    events: list[dict[str, Any]], device_work: list[dict[str, Any]], marks: dict[Part, Spans]
) -> tuple[dict[Part, Spans], Spans]:
    """Kernels by the part in whose mark they were launched, and copies from the host."""
    launched_at = {event["args"]["correlation"]: event["ts"] * _US for event in events if event.get("cat") in _LAUNCHES}
    kernels = [event for event in device_work if not _is_copy(event) and not event["name"].startswith("nccl")]
    at: NDArray[np.float64] = np.array(
        [launched_at.get(event["args"]["correlation"], event["ts"] * _US) for event in kernels], np.float64
    )
    ran, free = _spans(kernels), np.ones(len(kernels), np.bool_)
    computing: dict[Part, Spans] = {}
    for part, marked in marks.items():
        inside = covers(marked, at)
        computing[part] = ran[inside]
        free &= ~inside
    computing[Part.OTHER] = ran[free]
    return computing, _spans(event for event in device_work if _is_copy(event))


def _is_copy(event: dict[str, Any]) -> bool:
    return bool(event["cat"] == "gpu_memcpy" and event["name"].startswith("Memcpy HtoD"))
