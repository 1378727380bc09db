"""What accelerators can do: dense rates, memory bandwidth and memory, each from a page that was read and is named.

Published rates "with sparsity" are twice these. The same table gives the peak of model FLOPs utilisation in training.
"""

from dataclasses import dataclass

from longvid_train.errors import UserError, nearest

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device.

    Attributes:
        name: as ``longvid cost --device`` takes it.
        flops_per_s: dense 16-bit matrix products with float32 sums; a multiply-add is two.
        bytes_per_s: bandwidth of its memory.
        memory_bytes: its memory in decimal bytes, a few percent below what the driver reports; frameworks and their
            libraries need the rest.
        source: where the numbers are from.
        torch_names: what ``torch.cuda.get_device_name`` calls it.
        tf32_flops_per_s: dense TF32 matrix products.
        float32_flops_per_s: float32 without tensor cores.
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: int
    source: str
    torch_names: tuple[str, ...] = ()
    tf32_flops_per_s: float | None = None
    float32_flops_per_s: float | None = None


_A100 = "NVIDIA's datasheet us-nvidia-1758950-r4 as tabulated at glennklockwood.com/garden/processors/A100"
_A100_MEMORY = "thundercompute.com/blog/nvidia-a100-specs-full-guide"
_H100 = "NVIDIA's figures as tabulated at glennklockwood.com/garden/processors/h100"
_H100_PCIE = "archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html, tensor rates without sparsity"
_H200 = (
    f"{_H100}, for the H100 SXM5; itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html; "
    "aiminingco.com/gpu/h200/specs"
)
_A6000 = (
    "llmperf.net/categories/gpu/Nvidia-A6000-GPUs; servethehome.com/nvidia-rtx-a6000-48gb-gpu-drops-quadro-designation"
)
_RTX_4090 = "waredb.com/processor/nvidia-geforce-rtx-4090, without sparsity"
_L40S = "NVIDIA's figures at mullet.se/product.html?product_id=355414, without sparsity"

# name, torch's names, TFLOP/s in 16 bits, in TF32, in float32, GB/s, GB, source
_Row = tuple[str, tuple[str, ...], float, float | None, float | None, float, int, str]
_ROWS: tuple[_Row, ...] = (
    ("a100-40gb-sxm", ("NVIDIA A100-SXM4-40GB",), 312, 156, 19.5, 1555, 40, f"{_A100}; {_A100_MEMORY}"),
    ("a100-80gb-sxm", ("NVIDIA A100-SXM4-80GB",), 312, 156, 19.5, 2039, 80, f"{_A100}; {_A100_MEMORY}"),
    ("a100-40gb-pcie", ("NVIDIA A100-PCIE-40GB",), 312, 156, 19.5, 1555, 40, f"{_A100}; {_A100_MEMORY}"),
    ("a100-80gb-pcie", ("NVIDIA A100 80GB PCIe",), 312, 156, 19.5, 1935, 80, f"{_A100}; {_A100_MEMORY}"),
    ("h100-sxm", ("NVIDIA H100 80GB HBM3",), 989.4, 494.7, 66.9, 3350, 80, f"{_H100}; {_H100_PCIE}"),
    ("h100-pcie", ("NVIDIA H100 PCIe",), 756.5, 378, 51, 2000, 80, _H100_PCIE),
    ("h200-sxm", ("NVIDIA H200",), 989.4, 494.7, 66.9, 4800, 141, _H200),
    ("rtx-a6000", (), 154.8, None, None, 768, 48, _A6000),
    ("rtx-4090", ("NVIDIA GeForce RTX 4090",), 165.15, 82.58, 82.58, 1008, 24, _RTX_4090),
    ("l40s", ("NVIDIA L40S",), 362.05, 183, 91.6, 864, 48, _L40S),
)
DEFAULT = "a100-80gb-sxm"


def _device(row: _Row) -> Hardware:
    name, torch_names, half, tf32, single, gb_per_s, gb, source = row
    return Hardware(
        name=name,
        flops_per_s=half * TERA,
        bytes_per_s=gb_per_s * GIGA,
        memory_bytes=int(gb * GIGA),
        source=source,
        torch_names=torch_names,
        tf32_flops_per_s=None if tf32 is None else tf32 * TERA,
        float32_flops_per_s=None if single is None else single * TERA,
    )


_DEVICES = {row[0]: _device(row) for row in _ROWS}


def device_called(torch_name: str) -> Hardware | None:
    """The device that ``torch.cuda.get_device_name`` calls ``torch_name``; None if it is not in the table."""
    return next((device for device in _DEVICES.values() if torch_name in device.torch_names), None)


def hardware_names() -> list[str]:
    """Names of all known devices."""
    return list(_DEVICES)


def hardware(name: str) -> Hardware:
    """The device called ``name``.

    Raises:
        UserError: no such device.
    """
    if name not in _DEVICES:
        hint = nearest(name, list(_DEVICES)) or "."
        raise UserError(
            f"device '{name}' is unknown{hint} Use one of {', '.join(_DEVICES)}, or give --tflops, --bandwidth-gbs and "
            "--memory-gb"
        )
    return _DEVICES[name]
