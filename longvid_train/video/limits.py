"""Ceilings on what a video file may cost: video files are untrusted input.

Every violation is a `UserError` that names the value, the rule and the setting that raises it: ``limits.<field>``, the
option ``--limits.<field>`` of ``longvid ask`` and ``longvid frames`` and the key ``data.media.limits.<field>`` of a
config.
"""

from dataclasses import dataclass, fields

from longvid_train.errors import UserError

_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What reading one file may cost.

    Attributes:
        max_file_bytes: size of the file.
        max_pixels_per_frame: width x height as stored.
        max_frames: frames returned by one call.
        max_duration_s: length of the video.
        max_output_bytes: bytes of the RGB frames returned by one call.
        timeout_s: wall-clock and CPU seconds of one isolated call (without isolation there is nothing to kill).
        max_memory_bytes: address space of the isolated process.
        allowed_schemes: URL schemes that may be opened beside local paths, e.g. ``("https",)``.
    """

    max_file_bytes: int = 64 * _GIB
    max_pixels_per_frame: int = 8192 * 4320
    max_frames: int = 16_384
    max_duration_s: float = 24 * 3600.0
    max_output_bytes: int = 8 * _GIB
    timeout_s: float = 600.0
    max_memory_bytes: int = 16 * _GIB
    allowed_schemes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse ceilings that are not positive."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "allowed_schemes" and not value > 0:
                raise UserError(f"limits.{field.name} is {value}; it must be greater than 0")

    def check_file(self, path: str, file_bytes: int) -> None:
        """Raise `UserError` if the file is empty or too large."""
        if file_bytes == 0:
            raise UserError(f"{path}: the file is empty; there is no video in it")
        _check(path, "bytes", file_bytes, "max_file_bytes", self.max_file_bytes)

    def check_picture(self, path: str, width: int, height: int) -> None:
        """Raise `UserError` if a stored frame of ``width x height`` pixels is too large."""
        _check(
            path,
            f"pixels a frame ({width}x{height})",
            width * height,
            "max_pixels_per_frame",
            self.max_pixels_per_frame,
        )

    def check_duration(self, path: str, duration_s: float) -> None:
        """Raise `UserError` if the video is too long."""
        _check(path, "seconds", duration_s, "max_duration_s", self.max_duration_s)

    def check_frame_count(self, path: str, frames: int) -> None:
        """Raise `UserError` if ``frames`` frames of one file are too many."""
        _check(path, "frames asked for", frames, "max_frames", self.max_frames)

    def check_output(self, path: str, frames: int, width: int, height: int) -> None:
        """Raise `UserError` if ``frames`` RGB frames of ``width x height`` are too many or too large together."""
        self.check_frame_count(path, frames)
        size = frames * width * height * 3
        _check(
            path,
            f"bytes of output ({frames} frames of {width}x{height} RGB)",
            size,
            "max_output_bytes",
            self.max_output_bytes,
        )


def _check(path: str, what: str, value: float, setting: str, ceiling: float) -> None:
    if value > ceiling:
        raise UserError(
            f"{path}: {value:.12g} {what}, more than limits.{setting} = {ceiling:.12g}; "
            f"raise limits.{setting} if you trust the file"
        )
