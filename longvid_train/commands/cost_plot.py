"""Memory and time over frames, as one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from longvid_train.cost.hardware import GIGA, Hardware
from longvid_train.files import atomic_path

if TYPE_CHECKING:
    from longvid_train.commands.costing import Plan

DOTS_PER_INCH = 150


def plot_curve(plans: Sequence["Plan"], device: Hardware, target: Path) -> None:
    """Write a PNG: weights, KV and activations stacked against the device's memory; encode, prefill and one token."""
    frames = [plan.frames for plan in plans]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    memory, time = figure.subplots(1, 2)
    weights = [plan.cost.weight_bytes / GIGA for plan in plans]
    kv = [plan.cost.kv_bytes / GIGA for plan in plans]
    rest = [(plan.cost.total_bytes - plan.cost.weight_bytes - plan.cost.kv_bytes) / GIGA for plan in plans]
    memory.stackplot(frames, weights, kv, rest, labels=["weights", "KV cache", "activations"], alpha=0.85)
    memory.axhline(device.memory_bytes / GIGA, color="black", linestyle="--", linewidth=0.8, label=device.name)
    memory.set(xlabel="frames", ylabel="peak memory (GB)")
    memory.legend(fontsize=8, loc="upper left")
    for name, values in (
        ("encode", [plan.cost.encode_ms for plan in plans]),
        ("prefill", [plan.cost.prefill_ms for plan in plans]),
        ("one token", [plan.cost.decode_ms for plan in plans]),
    ):
        time.plot(frames, values, label=name)
    time.set(xlabel="frames", ylabel=f"roofline time on {device.name} (ms)", yscale="log")
    time.legend(fontsize=8)
    with atomic_path(target) as written:
        figure.savefig(written, format="png", dpi=DOTS_PER_INCH)
