"""The rate a device could multiply matrices at, with its source: the denominator of model FLOPs utilisation.

Known accelerators have published dense rates (the numbers "with sparsity" are twice these), each from a page that was
read and is named; any other device is measured. A MIG slice has a device name of its own, so it is measured too.
Lightning's own table is not used: it mixes rates with sparsity (H200) and without tensor cores (RTX 4090, A6000) in one
column.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Compute = Literal["bfloat16", "float16", "tf32", "float32", "float64"]

_A100 = "NVIDIA's datasheet us-nvidia-1758950-r4 as tabulated at glennklockwood.com/garden/processors/A100"
_A100_PCIE = f"{_A100}; the PCIe cards have its cores and clock (thundercompute.com/blog/nvidia-a100-specs-full-guide)"
_H100 = "NVIDIA's figures as tabulated at glennklockwood.com/garden/processors/h100"
_H100_PCIE = "archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html, tensor rates without sparsity"
_H200 = (
    f"{_H100}, which says it computes as the H100 SXM5; itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html"
)
_RTX_4090 = "waredb.com/processor/nvidia-geforce-rtx-4090, without sparsity"
_L40S = "NVIDIA's figures at mullet.se/product.html?product_id=355414, without sparsity"

_TERA = 1e12
_Row = tuple[float, float, float, str]

_ROWS: dict[str, _Row] = {
    "NVIDIA A100-SXM4-40GB": (312, 156, 19.5, _A100),
    "NVIDIA A100-SXM4-80GB": (312, 156, 19.5, _A100),
    "NVIDIA A100-PCIE-40GB": (312, 156, 19.5, _A100_PCIE),
    "NVIDIA A100 80GB PCIe": (312, 156, 19.5, _A100_PCIE),
    "NVIDIA H100 80GB HBM3": (989.4, 494.7, 66.9, _H100),
    "NVIDIA H100 PCIe": (756.5, 378, 51, _H100_PCIE),
    "NVIDIA H200": (989.4, 494.7, 66.9, _H200),
    "NVIDIA GeForce RTX 4090": (165.15, 82.58, 82.58, _RTX_4090),
    "NVIDIA L40S": (362.05, 183, 91.6, _L40S),
}
"""``torch.cuda.get_device_name`` -> TFLOP/s in 16-bit types, TF32 and float32 (no tensor cores), and the source."""

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
    """The published rate of the accelerator ``name``; None if it is not in the table."""
    if name not in _ROWS or compute == "float64":
        return None
    half, tf32, single, source = _ROWS[name]
    rate = {"tf32": tf32, "float32": single}.get(compute, half)
    return PeakRate(flops_per_s=rate * _TERA, source=f"{name}, {compute}: {source}")


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
