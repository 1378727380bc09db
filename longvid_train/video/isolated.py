"""Decoding in a process that can be killed: video files are untrusted input, and decoders have had remote code
execution bugs.

The child (``child.py``) limits its own memory and CPU time; the parent gives it a deadline, kills its whole process
group, and trusts nothing it says: no pickle, every length and type checked. The child gets no environment beyond what
Python needs to start.
"""

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video.decoding import Decoded, Request
from longvid_train.video.info import VideoInfo
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.routing import READERS
from longvid_train.video.wire import Order, encode_request, parse_header_length

_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR")
_PREFIX_BYTES = 12
_CHUNK_BYTES = 1 << 20
_MAX_FRAMES_INDEXED = 1 << 27


def decode_isolated(request: Request) -> Decoded:
    """`decode` in a process of its own.

    Raises:
        UserError: as `decode`, and where the process exceeds its time or memory or crashes.
    """
    limits = request.limits
    with _child({"action": "decode", "request": encode_request(request)}, request.path, limits) as child:
        header = child.header()
        shape = _checked_shape(child, header, limits)
        timestamps_s = child.array((shape[0],), np.dtype(np.float64))
        frames = child.array(shape, np.dtype(np.uint8))
        return Decoded(
            frames=frames,
            timestamps_s=timestamps_s,
            duration_s=child.number(header, "duration_s"),
            reader=child.one_of(header, "reader", READERS),
        )


def probe_isolated(path: str, limits: DecodeLimits) -> VideoInfo:
    """`probe` in a process of its own.

    Raises:
        UserError: as `decode_isolated`.
    """
    with _child({"action": "probe", "request": {"path": path, "limits": asdict(limits)}}, path, limits) as child:
        header = child.header()
        frames = child.integer(header, "frame_count", 1, _MAX_FRAMES_INDEXED)
        return VideoInfo(
            path=path,
            container=child.text(header, "container"),
            codec=child.text(header, "codec"),
            width=child.integer(header, "width", 1, limits.max_pixels_per_frame),
            height=child.integer(header, "height", 1, limits.max_pixels_per_frame),
            rotation_deg=child.integer(header, "rotation_deg", 0, 359),
            timestamps_s=child.array((frames,), np.dtype(np.float64)),
            duration_s=child.number(header, "duration_s"),
        )


class _Child:
    """The running child, seen by a parent that does not trust it."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: str, limits: DecodeLimits) -> None:
        assert process.stdout is not None
        self.process, self.path, self.limits = process, path, limits
        self.output = process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.deadline_s = time.monotonic() + limits.timeout_s
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.output, selectors.EVENT_READ)

    def header(self) -> dict[str, Any]:
        """Read the header; raise the child's error as ours."""
        length = parse_header_length(bytes(self._bytes(_PREFIX_BYTES)))
        try:
            header = json.loads(bytes(self._bytes(length)))
        except ValueError as error:
            raise self._malformed() from error
        if not isinstance(header, dict):
            raise self._malformed()
        if header.get("memory") is True:
            raise self._out_of_memory()
        if "error" in header:
            raise UserError(self.text(header, "error"))
        return header

    def array(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> NDArray[Any]:
        """Read an array of a checked shape."""
        array = np.empty(shape, dtype=dtype)
        self._read_into(array.reshape(-1).view(np.uint8).data)
        return array

    def number(self, header: dict[str, Any], name: str) -> float:
        """A finite number of the header."""
        value = header.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise self._malformed()
        return float(value)

    def integer(self, header: dict[str, Any], name: str, low: int, high: int) -> int:
        """An integer of the header within ``low`` to ``high``."""
        value = header.get(name)
        if not isinstance(value, int) or not low <= value <= high:
            raise self._malformed()
        return value

    def text(self, header: dict[str, Any], name: str) -> str:
        """A printable line of the header."""
        value = header.get(name)
        if not isinstance(value, str):
            raise self._malformed()
        return "".join(letter if letter.isprintable() else " " for letter in value)

    def one_of(self, header: dict[str, Any], name: str, names: tuple[str, ...]) -> str:
        """A word of the header that must be one of ``names``."""
        value = self.text(header, name)
        if value not in names:
            raise self._malformed()
        return value

    def _bytes(self, count: int) -> bytearray:
        buffer = bytearray(count)
        self._read_into(memoryview(buffer))
        return buffer

    def _read_into(self, target: memoryview) -> None:
        done = 0
        while done < len(target):
            left_s = self.deadline_s - time.monotonic()
            if left_s <= 0 or not self.selector.select(left_s):
                raise UserError(
                    f"{self.path}: decoding took longer than limits.timeout_s = {self.limits.timeout_s:g} s and was "
                    "stopped; ask for fewer frames or raise limits.timeout_s"
                )
            count = os.readv(self.output, [target[done : done + _CHUNK_BYTES]])
            if count == 0:
                raise self._died()
            done += count

    def _died(self) -> UserError:
        status = self.process.wait(timeout=5)
        if status == -signal.SIGXCPU:
            return UserError(
                f"{self.path}: decoding used more CPU time than limits.timeout_s = {self.limits.timeout_s:g} s allows; "
                "ask for fewer frames or raise limits.timeout_s"
            )
        if status < 0:
            name = signal.Signals(-status).name
            return UserError(
                f"{self.path}: the isolated decoder was killed by {name}; the file is damaged or hostile, "
                f"or needs more than limits.max_memory_bytes = {self.limits.max_memory_bytes}"
            )
        return UserError(f"{self.path}: the isolated decoder failed (exit status {status}); {self._last_words()}")

    def _last_words(self) -> str:
        assert self.process.stderr is not None
        lines = self.process.stderr.read(1 << 16).decode(errors="replace").strip().splitlines()
        return "".join(letter for letter in lines[-1] if letter.isprintable())[:300] if lines else "it said nothing"

    def _out_of_memory(self) -> UserError:
        return UserError(
            f"{self.path}: decoding needs more than limits.max_memory_bytes = {self.limits.max_memory_bytes}; "
            "ask for fewer or smaller frames, or raise limits.max_memory_bytes"
        )

    def _malformed(self) -> UserError:
        return UserError(f"{self.path}: the isolated decoder sent a malformed answer; the file is damaged or hostile")


def _checked_shape(child: _Child, header: dict[str, Any], limits: DecodeLimits) -> tuple[int, int, int, int]:
    frames = child.integer(header, "frames", 1, limits.max_frames)
    height = child.integer(header, "height", 1, limits.max_pixels_per_frame)
    width = child.integer(header, "width", 1, limits.max_pixels_per_frame)
    limits.check_output(child.path, frames, width, height)
    return frames, height, width, 3


@contextmanager
def _child(order: Order, path: str, limits: DecodeLimits) -> Iterator[_Child]:
    """Start a child with ``order``; whatever happens, its process group is dead afterwards."""
    if sys.platform == "win32":
        raise UserError(
            "isolated decoding needs Linux or macOS; read with isolated=False (longvid frames --no-isolate)"
        )
    root = str(Path(__file__).resolve().parents[2])
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    environment |= {
        "PYTHONPATH": os.pathsep.join([root, *sys.path]),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "longvid_train.video.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        with (
            suppress(BrokenPipeError),
            process.stdin as orders,
        ):  # a child that died at once is reported when it is read
            orders.write(json.dumps(order).encode())
        yield _Child(process, path, limits)
    finally:
        _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
