"""What the isolated process and its parent say to each other: a JSON header, then raw array bytes. No pickle.

A message is ``MAGIC``, the header's length as 8 bytes (big endian), the header as JSON, and the arrays the header
describes. The parent does not trust the child: lengths, shapes, dtypes and types are checked against the limits
before use.
"""

import json
from dataclasses import asdict
from typing import Any, Literal, TypedDict

from longvid_train.errors import UserError
from longvid_train.video.decoding import Request
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.sampling import AtTimes, FramesPerSecond, Sampling, UniformFrames

MAGIC = b"LVID"
MAX_HEADER_BYTES = 1 << 20
_SAMPLINGS: dict[str, type[UniformFrames] | type[FramesPerSecond] | type[AtTimes]] = {
    kind.__name__: kind for kind in (UniformFrames, FramesPerSecond, AtTimes)
}


class Order(TypedDict):
    """The parent's message: what to do, and the path and limits to do it with."""

    action: Literal["decode", "probe"]
    request: dict[str, Any]


def encode_request(request: Request) -> dict[str, Any]:
    """``request`` as JSON values."""
    return {
        "path": request.path,
        "sampling": {"kind": type(request.sampling).__name__, **asdict(request.sampling)},
        "reader": request.reader,
        "limits": asdict(request.limits),
        "shortest_edge": request.shortest_edge,
        "exact": request.exact,
        "workers": request.workers,
    }


def decode_request(values: dict[str, Any]) -> Request:
    """The request that `encode_request` wrote."""
    return Request(
        path=values["path"],
        sampling=_sampling(dict(values["sampling"])),
        reader=values["reader"],
        limits=decode_limits(values["limits"]),
        shortest_edge=values["shortest_edge"],
        exact=values["exact"],
        workers=values["workers"],
    )


def decode_limits(values: dict[str, Any]) -> DecodeLimits:
    """The limits that ``asdict`` wrote."""
    return DecodeLimits(**{**values, "allowed_schemes": tuple(values["allowed_schemes"])})


def _sampling(values: dict[str, Any]) -> Sampling:
    return _SAMPLINGS[values.pop("kind")](**values)


def header_bytes(header: dict[str, Any]) -> bytes:
    """``MAGIC``, length and JSON of a header."""
    body = json.dumps(header).encode()
    return MAGIC + len(body).to_bytes(8, "big") + body


def parse_header_length(prefix: bytes) -> int:
    """Length of the JSON that follows the 12-byte ``prefix``.

    Raises:
        UserError: the prefix is not that of a message, or announces too long a header.
    """
    length = int.from_bytes(prefix[4:], "big")
    if prefix[:4] != MAGIC or length > MAX_HEADER_BYTES:
        raise UserError("the isolated decoder sent a malformed answer")
    return length
