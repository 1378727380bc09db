"""Is the file as long as its own headers say? Read from the container's outermost structure, a few bytes a box.

FFmpeg plays what is there of a cut-off file and stops, so a half-downloaded video would silently become a shorter one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

MAX_BOXES = 10_000_000
_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_TS_SYNC = 0x47
_TS_PACKET = 188


def missing_bytes(path: Path, container: str) -> int:
    """Bytes that the container's headers promise beyond the end of the file; 0 if it is whole or no rule is known.

    Args:
        path: a local file.
        container: FFmpeg's name of its demuxer.
    """
    rule = _RULES.get(container.split(",")[0])
    if rule is None:
        return 0
    size = path.stat().st_size
    with path.open("rb") as stream:
        return max(0, rule(stream, size) - size)


def _iso_media_end(stream: BinaryIO, size: int) -> int:
    """End of the last top-level box of MP4 or QuickTime (ISO/IEC 14496-12, 4.2)."""
    at = 0
    for _ in range(MAX_BOXES):
        if at >= size:
            break
        stream.seek(at)
        header = stream.read(16)
        if len(header) < 8:
            return at + 8 if any(header) else size
        length, smallest = int.from_bytes(header[:4], "big"), 8
        if length == 1:
            length, smallest = int.from_bytes(header[8:16], "big"), 16
        if length < smallest:
            return size
        at += length
    return at


def _matroska_end(stream: BinaryIO, size: int) -> int:
    """End of the segment of Matroska or WebM (RFC 8794); a live recording has no known end."""
    head = stream.read(4096)
    if head[:4] != _EBML_MAGIC:
        return size
    length, width = _ebml_size(head, 4)
    at = 4 + width + length
    if at + 12 > len(head) or head[at : at + 4] != b"\x18\x53\x80\x67":
        return size
    length, width = _ebml_size(head, at + 4)
    unknown = length == (1 << (7 * width)) - 1
    return size if unknown else at + 4 + width + length


def _ebml_size(head: bytes, at: int) -> tuple[int, int]:
    """The value and width in bytes of a variable-size integer."""
    width = 9 - head[at].bit_length()
    if width > 8:
        return 0, 1
    value = int.from_bytes(head[at : at + width], "big") & ((1 << (7 * width)) - 1)
    return value, width


def _riff_end(stream: BinaryIO, size: int) -> int:
    """End of the last RIFF chunk of an AVI file."""
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        header = stream.read(8)
        if header[:4] != b"RIFF":
            break
        length = int.from_bytes(header[4:], "little")
        at += 8 + length + (length & 1)
    return at - (at & 1) if at == size + 1 else at


def _gif_end(stream: BinaryIO, size: int) -> int:
    """End of a GIF: blocks up to the trailer (GIF89a specification, sections 17 to 27)."""
    header = stream.read(13)
    if len(header) < 13:
        return size + 1
    stream.seek(_color_table_bytes(header[10]), 1)
    while stream.tell() < size:
        kind = stream.read(1)
        if kind == b"\x3b":
            return size
        if kind == b"\x2c":
            descriptor = stream.read(9)
            stream.seek(_color_table_bytes(descriptor[8] if len(descriptor) == 9 else 0) + 1, 1)
        elif kind == b"\x21":
            stream.seek(1, 1)
        else:
            return size
        while length := stream.read(1):
            stream.seek(length[0], 1)
            if length == b"\0":
                break
    return size + 1


def _color_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _transport_end(stream: BinaryIO, size: int) -> int:
    """A transport stream is made of whole packets of 188 bytes."""
    head = stream.read(_TS_PACKET + 1)
    plain = len(head) > _TS_PACKET and head[0] == _TS_SYNC and head[_TS_PACKET] == _TS_SYNC
    return size + (-size % _TS_PACKET) if plain else size


_RULES: dict[str, Callable[[BinaryIO, int], int]] = {
    "mov": _iso_media_end,
    "matroska": _matroska_end,
    "avi": _riff_end,
    "gif": _gif_end,
    "mpegts": _transport_end,
}
