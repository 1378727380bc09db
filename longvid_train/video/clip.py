"""``read_clip`` and ``probe``: the way from a file to frames."""

from pathlib import Path
from typing import TYPE_CHECKING

from longvid_train.video.decoding import Request, decode
from longvid_train.video.info import VideoInfo
from longvid_train.video.isolated import decode_isolated, probe_isolated
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.sampling import Sampling
from longvid_train.video.source import open_source

if TYPE_CHECKING:
    from longvid_train.types import VideoClip

DEFAULT_LIMITS = DecodeLimits()


def probe(path: str | Path, *, isolated: bool = False, limits: DecodeLimits = DEFAULT_LIMITS) -> VideoInfo:
    """What a file holds: size, codec and the time of every frame, with only the first frame decoded.

    (A container without presentation times, such as AVI, is decoded once in full to count its frames.)

    Args:
        path: a local file, or a URL if ``limits.allowed_schemes`` allows its scheme.
        isolated: probe in a killable process; see `read_clip`.
        limits: what probing may cost.

    Raises:
        UserError: as `read_clip`.
    """
    if isolated:
        return probe_isolated(str(path), limits)
    return open_source(str(path), limits).info


def read_clip(
    path: str | Path,
    sampling: Sampling,
    *,
    reader: str = "auto",
    isolated: bool = False,
    limits: DecodeLimits = DEFAULT_LIMITS,
    shortest_edge: int | None = None,
    exact: bool = True,
    workers: int | None = None,
) -> "VideoClip":
    """Decode the frames that ``sampling`` selects.

    Args:
        path: a local file, or a URL if ``limits.allowed_schemes`` allows its scheme.
        sampling: `UniformFrames`, `FramesPerSecond` or `AtTimes`.
        reader: ``"auto"``, ``"pyav"`` or ``"decord"``; see ``routing.py``.
        isolated: decode in a process of its own that is killed when it exceeds ``limits.timeout_s`` or
            ``limits.max_memory_bytes``, or crashes. Use it for files from strangers.
        limits: what reading may cost.
        shortest_edge: scale frames so that the shorter side has this many pixels; smaller frames stay as they are.
        exact: False returns, for each frame, the keyframe at or before it, which is fast; the timestamps are those of
            the frames returned.
        workers: threads that decode; None takes the cores this process may run on. Say 1 in a data loader's worker.

    Returns:
        The clip; ``frames`` is ``(N, height, width, 3)`` uint8 RGB, upright, in the order of ``sampling``.

    Raises:
        UserError: the file is missing, empty, not a video, cut off or damaged; breaks a limit; or does not hold the
            frames asked for. The message names the file.
    """
    from longvid_train.types import VideoClip  # imports torch, which the isolated process must not

    request = Request(
        path=str(path),
        sampling=sampling,
        reader=reader,
        limits=limits,
        shortest_edge=shortest_edge,
        exact=exact,
        workers=workers,
    )
    decoded = decode_isolated(request) if isolated else decode(request)
    return VideoClip(
        frames=decoded.frames,
        timestamps_s=decoded.timestamps_s,
        duration_s=decoded.duration_s,
        reader=decoded.reader,
        path=str(path),
    )
