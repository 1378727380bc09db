"""The isolated decoder: ``python -m longvid_train.video.child``, an order on stdin, the answer on stdout.

Before it touches the file it limits itself (address space, CPU seconds, no files written, no core dumps). It imports
NumPy and PyAV only, so that it starts in a fraction of a second.
"""

import json
import os
import resource
import sys
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video.decoding import decode
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.source import open_source
from longvid_train.video.wire import Order, decode_limits, decode_request, header_bytes

CPU_GRACE_S = 1


def main() -> int:
    """Obey one order and return the exit status."""
    answer = os.fdopen(os.dup(1), "wb")
    os.set_blocking(2, False)  # a parent that does not read stderr must not stop us
    os.dup2(2, 1)  # whatever a library prints must not reach the answer
    order: Order = json.load(sys.stdin)
    try:
        header, arrays = obey(order)
    except UserError as error:
        header, arrays = {"error": str(error)}, []
    except MemoryError:
        header, arrays = {"memory": True}, []
    send(answer, header, arrays)
    return 0


def obey(order: Order) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Carry out an order; the header and arrays of the answer."""
    values = order["request"]
    limits = decode_limits(values["limits"])
    confine(limits)
    if order["action"] == "probe":
        info = open_source(values["path"], limits).info
        names = ("container", "codec", "width", "height", "rotation_deg", "duration_s")
        header = {name: getattr(info, name) for name in names}
        return {**header, "frame_count": info.frame_count}, [info.timestamps_s]
    decoded = decode(decode_request(values))
    frames, height, width, _ = decoded.frames.shape
    shape = {"frames": frames, "height": height, "width": width}
    header = {**shape, "duration_s": decoded.duration_s, "reader": decoded.reader}
    return header, [decoded.timestamps_s, decoded.frames]


def confine(limits: DecodeLimits) -> None:
    """Limit this process for good."""
    cores = os.cpu_count() or 1
    cpu_s = int(limits.timeout_s * cores) + CPU_GRACE_S
    for kind, ceiling in (
        (resource.RLIMIT_AS, limits.max_memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        ceiling = ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard)
        resource.setrlimit(kind, (ceiling, ceiling))


def send(answer: BinaryIO, header: dict[str, Any], arrays: list[NDArray[Any]]) -> None:
    """Write a message (see ``wire.py``)."""
    with answer:
        answer.write(header_bytes(header))
        for array in arrays:
            answer.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


if __name__ == "__main__":
    sys.exit(main())
