"""Time by roofline: each kernel takes as long as its operations or its bytes need, whichever is longer."""

from collections.abc import Iterable
from dataclasses import dataclass

from longvid_train.cost.hardware import Hardware


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A part of a job that runs as one.

    Attributes:
        name: for people.
        ops: operations of matrix products; a multiply-add is two.
        bytes: read from and written to the device's memory.
    """

    name: str
    ops: int
    bytes: int

    def time_ms(self, hardware: Hardware) -> float:
        """The roofline bound in milliseconds."""
        return 1e3 * max(self.ops / hardware.flops_per_s, self.bytes / hardware.bytes_per_s)

    def bound(self, hardware: Hardware) -> str:
        """``"compute"`` or ``"memory"``."""
        compute_s, memory_s = self.ops / hardware.flops_per_s, self.bytes / hardware.bytes_per_s
        return "compute" if compute_s >= memory_s else "memory"


def total_ops(kernels: Iterable[Kernel]) -> int:
    """Operations of all kernels."""
    return sum(kernel.ops for kernel in kernels)


def total_bytes(kernels: Iterable[Kernel]) -> int:
    """Bytes moved by all kernels."""
    return sum(kernel.bytes for kernel in kernels)


def total_ms(kernels: Iterable[Kernel], hardware: Hardware) -> float:
    """Kernels one after another."""
    return sum(kernel.time_ms(hardware) for kernel in kernels)
