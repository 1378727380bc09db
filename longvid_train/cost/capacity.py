"""How many frames fit: the largest number for which a job's peak stays within a device's memory."""

from collections.abc import Callable

HEADROOM = 0.9
"""The part of a device's memory that is planned with: allocators fragment, and the driver's context takes some."""


def most_frames(peak_bytes: Callable[[int], int], memory_bytes: int, *, limit: int, step: int = 1) -> int:
    """The largest multiple of ``step`` up to ``limit`` that fits; 0 if not even one step does.

    Args:
        peak_bytes: peak of a number of frames; must not fall with more frames.
        memory_bytes: of the device; `HEADROOM` of it is used.
        limit: frames beyond which nobody asks, e.g. those whose tokens the window holds.
        step: frames a tower takes together.
    """
    room = HEADROOM * memory_bytes
    low, high = 0, limit // step
    while low < high:
        middle = (low + high + 1) // 2
        if peak_bytes(middle * step) <= room:
            low = middle
        else:
            high = middle - 1
    return low * step
