"""The rate a device could multiply matrices at, with its source: the denominator of model FLOPs utilisation.

Known accelerators have published dense rates (`longvid_train.cost.hardware`); any other device is measured. A MIG slice
has a device name of its own, so it is measured too.
Lightning's own table is not used: it mixes rates with sparsity (H200) and without tensor cores (RTX 4090, A6000) in one
column.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from longvid_train.cost.hardware import device_called

Compute = Literal["bfloat16", "float16", "tf32", "float32", "float64"]

_PRECISIONS: dict[str, Compute] = {
    "bf16-mixed": "bfloat16",
    "bf16-true": "bfloat16",
    "16-mixed": "float16",
    "16-true": "float16",
    "32-true": "float32",
    "64-true": "float64",
}
_DTYPES: dict[Compute, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
}
MEASURED_PRODUCTS = 6
MEASURED_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class PeakRate:
    """What one device could do.

    Attributes:
        flops_per_s: multiply-adds counted as two.
        source: where the number is from, for people.
    """

    flops_per_s: float
    source: str


def peak_rate(device: torch.device, precision: str, clock: Callable[[], float] = time.perf_counter) -> PeakRate | None:
    """The peak rate of ``device`` under Lightning's ``precision``.

    Args:
        device: where the model computes.
        precision: ``trainer.precision``, e.g. ``"bf16-mixed"``.
        clock: seconds, for a device that is measured.

    Returns:
        None for a precision that no matrix product of torch has (``"transformer-engine"``).
    """
    compute = _PRECISIONS.get(precision)
    if compute is None:
        return None
    if compute == "float32" and device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        compute = "tf32"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return known_rate(name, compute) or measured_rate(device, name, compute, clock)


def known_rate(name: str, compute: Compute) -> PeakRate | None:
    """The published rate of the accelerator that torch calls ``name``; None if it is not in the table."""
    device = device_called(name)
    if device is None or compute == "float64":
        return None
    rates = {"tf32": device.tf32_flops_per_s, "float32": device.float32_flops_per_s}
    rate = rates.get(compute, device.flops_per_s)
    return None if rate is None else PeakRate(flops_per_s=rate, source=f"{name}, {compute}: {device.source}")


def measured_rate(device: torch.device, name: str, compute: Compute, clock: Callable[[], float]) -> PeakRate:
    """The fastest of a few square matrix products on ``device``; torch's random state is left alone."""
    side, dtype = MEASURED_SIDE.get(device.type, MEASURED_SIDE["cuda"]), _DTYPES[compute]
    matrix = torch.linspace(-1, 1, side * side, dtype=torch.float32, device=device).view(side, side).to(dtype)
    best_s = float("inf")
    for _ in range(MEASURED_PRODUCTS):
        _wait(device)
        start_s = clock()
        torch.mm(matrix, matrix)
        _wait(device)
        best_s = min(best_s, clock() - start_s)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return PeakRate(
        flops_per_s=2 * side**3 / max(best_s, 1e-9),
        source=f"{name}{threads}, {compute}: measured here, the fastest of {MEASURED_PRODUCTS} products of "
        f"{side} x {side} matrices",
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
