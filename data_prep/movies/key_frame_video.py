"""Key frames as a video: the JPEG files themselves become the packets of an MP4, each at its own time.

Nothing is encoded again, so no pixel changes and the file is as large as the pictures. Every frame stands alone, so any
frame can be read without its neighbours. Times are exact to 1/90000 s.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av

from data_prep.movies.pictures import check_picture
from data_prep.outcome import BadRecordError
from longvid_train.files import atomic_path

TICKS_PER_S = 90_000


def write_key_frame_video(path: Path, pictures: Sequence[bytes], times_s: Sequence[Fraction], end_s: Fraction) -> None:
    """Write an MP4 of Motion JPEG, atomically.

    Args:
        path: the file to write.
        pictures: JPEG files, all of one size.
        times_s: when each is shown, increasing; the first is the start of the video.
        end_s: when the last one ends.

    Raises:
        BadRecordError: a picture is broken or differs in size from the first.
    """
    assert pictures and len(pictures) == len(times_s) and times_s[-1] < end_s
    width, height = _common_size(path.stem, pictures)
    ticks = [round((time_s - times_s[0]) * TICKS_PER_S) for time_s in (*times_s, end_s)]
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("mjpeg")
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p"
        stream.time_base = Fraction(1, TICKS_PER_S)
        container.start_encoding()
        for raw, tick, following in zip(pictures, ticks[:-1], ticks[1:], strict=True):
            packet = av.Packet(raw)
            packet.stream = stream
            packet.time_base = Fraction(1, TICKS_PER_S)
            packet.pts = packet.dts = tick
            packet.duration = following - tick
            packet.is_keyframe = True
            container.mux(packet)


def _common_size(name: str, pictures: Sequence[bytes]) -> tuple[int, int]:
    first = check_picture(pictures[0], f"{name}, key frame 0")
    for number, raw in enumerate(pictures):
        size = check_picture(raw, f"{name}, key frame {number}")
        if size != first:
            raise BadRecordError("the key frames differ in size", f"{name}: number {number} is {size}, not {first}")
    return first
