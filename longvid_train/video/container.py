"""Opening an untrusted file with PyAV: local paths only, known demuxers only, always closed again.

FFmpeg's demuxers can follow references (playlists, ``concat``, DASH) to other files and to the network. Two whitelists
stop that: of protocols (``file`` unless a scheme is allowed) and of demuxers (`DEMUXERS`, none of which is a playlist).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from longvid_train.errors import UserError
from longvid_train.video.limits import DecodeLimits

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,gif,flv,asf,ogg,mpegvideo,h264,hevc,m4v,obu,ivf"
"""FFmpeg demuxers that may be used, none of which opens a second file."""

_SCHEME_PROTOCOLS = {"http": "http,tcp", "https": "https,http,tls,tcp", "file": "file"}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(//)")


@contextmanager
def opened(path: str, limits: DecodeLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yield the container and its first video stream (cover pictures do not count); close both afterwards.

    Raises:
        UserError: the file cannot be opened, is not a video in a known container, or breaks a limit.
    """
    url, protocols = _locate(path, limits)
    options = {"protocol_whitelist": protocols, "format_whitelist": DEMUXERS}
    try:
        container = av.open(url, mode="r", options=options, metadata_errors="ignore")
    except (FFmpegError, ValueError) as error:
        raise UserError(_why_not_opened(path, error)) from error
    with container:
        video = _video_stream(path, container, limits)
        for stream in container.streams:
            if stream.index != video.index:
                stream.discard = Discard.all
        yield container, video


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL rather than a local file."""
    return _SCHEME.match(path) is not None


def _locate(path: str, limits: DecodeLimits) -> tuple[str, str]:
    scheme = _SCHEME.match(path)
    if scheme:
        name = scheme.group(1).lower()
        if name not in limits.allowed_schemes:
            raise UserError(
                f"{path}: only local files are opened; add '{name}' to limits.allowed_schemes to allow this kind of URL"
            )
        if name not in _SCHEME_PROTOCOLS:
            raise UserError(f"{path}: scheme '{name}' is not supported; use one of {sorted(_SCHEME_PROTOCOLS)}")
        return path, _SCHEME_PROTOCOLS[name]
    return "file:" + str(checked_local(path, limits).absolute()), "file"


def checked_local(path: str, limits: DecodeLimits) -> Path:
    """Return ``path`` as a regular, non-empty file within the size limit, or raise `UserError`."""
    local = Path(path)
    try:
        status = local.stat()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no such file, or it may not be read ({error})") from error
    if not local.is_file():
        raise UserError(f"{path}: not a regular file; give a video file")
    limits.check_file(path, status.st_size)
    return local


def _why_not_opened(path: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"{path}: not a readable video file ({reason}); it may be cut off, or not a video at all"


def _video_stream(path: str, container: InputContainer, limits: DecodeLimits) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams}))
        raise UserError(f"{path}: there is no video stream in it (it holds: {kinds or 'nothing'})")
    stream = streams[0]
    if stream.codec_context is None:
        raise UserError(f"{path}: its video codec is unknown to FFmpeg; convert it to H.264 mp4")
    limits.check_picture(path, stream.codec_context.width, stream.codec_context.height)
    return stream
