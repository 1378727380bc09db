"""What accelerators can do, by their makers: dense 16-bit rate, memory bandwidth, memory."""

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
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: int
    source: str


_A100 = "NVIDIA A100 datasheet 1758950-r4 (A100 80GB); archived A100 40GB datasheet"
_H100 = "NVIDIA H100 datasheet; rates with sparsity halved"
_H200 = "NVIDIA H200 datasheet; rates with sparsity halved"
_GA102 = "NVIDIA GA102 whitepaper v2, appendix A"
_ADA = "NVIDIA Ada whitepaper v2.1, appendix A"

# name: (TFLOP/s in 16 bits, GB/s, GB, source)
_ROWS: dict[str, tuple[float, float, int, str]] = {
    "a100-40gb": (312, 1555, 40, _A100),
    "a100-80gb-pcie": (312, 1935, 80, _A100),
    "a100-80gb-sxm": (312, 2039, 80, _A100),
    "h100-pcie": (756, 2000, 80, _H100),
    "h100-sxm": (989.4, 3350, 80, _H100),
    "h100-nvl": (835, 3900, 94, _H100),
    "h200-sxm": (989.4, 4800, 141, _H200),
    "rtx-3090": (71, 936, 24, _GA102),
    "rtx-a6000": (154.8, 768, 48, _GA102),
    "rtx-4090": (165.2, 1008, 24, _ADA),
    "rtx-6000-ada": (364.2, 960, 48, _ADA),
    "l4": (121, 300, 24, "NVIDIA L4 datasheet; rates with sparsity halved"),
    "l40s": (362, 864, 48, "NVIDIA L40S datasheet; rates with sparsity halved"),
}
DEFAULT = "a100-80gb-sxm"


def hardware_names() -> list[str]:
    """Names of all known devices."""
    return list(_ROWS)


def hardware(name: str) -> Hardware:
    """The device called ``name``.

    Raises:
        UserError: no such device.
    """
    if name not in _ROWS:
        hint = nearest(name, list(_ROWS)) or "."
        raise UserError(
            f"device '{name}' is unknown{hint} Use one of {', '.join(_ROWS)}, or give --tflops, --bandwidth-gbs and "
            "--memory-gb"
        )
    tflops, gb_per_s, gb, source = _ROWS[name]
    return Hardware(
        name=name,
        flops_per_s=tflops * TERA,
        bytes_per_s=gb_per_s * GIGA,
        memory_bytes=int(gb * GIGA),
        source=source,
    )
