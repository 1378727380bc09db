"""Video files to frames: ``read_clip(path, sampling)``, ``probe(path)``, images and subtitles. See docs/video.md."""

from longvid_train.video.clip import probe, read_clip
from longvid_train.video.image import read_image
from longvid_train.video.info import VideoInfo
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.sampling import AtTimes, FramesPerSecond, Sampling, UniformFrames, frame_count, select
from longvid_train.video.subtitles import read_subtitles

__all__ = [
    "AtTimes",
    "DecodeLimits",
    "FramesPerSecond",
    "Sampling",
    "UniformFrames",
    "VideoInfo",
    "frame_count",
    "probe",
    "read_clip",
    "read_image",
    "read_subtitles",
    "select",
]
