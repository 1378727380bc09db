"""Exact frames with PyAV: seek to the keyframe before, decode to the frame."""

import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video.container import opened
from longvid_train.video.index import FrameIndex, scan
from longvid_train.video.info import VideoInfo
from longvid_train.video.limits import DecodeLimits


def describe(path: str, limits: DecodeLimits) -> tuple[VideoInfo, FrameIndex]:
    """Probe the file."""
    with opened(path, limits) as (container, stream):
        index = scan(path, container, stream)
        container.seek(0)
        first = next(container.decode(stream))
        width, height = (first.width, first.height) if first.rotation % 180 == 0 else (first.height, first.width)
        info = VideoInfo(
            path=path,
            container=container.format.name,
            codec=stream.codec_context.name,
            width=width,
            height=height,
            rotation_deg=first.rotation % 360,
            timestamps_s=index.timestamps_s,
            duration_s=index.duration_s,
        )
        return info, index


def decode(
    path: str,
    limits: DecodeLimits,
    info: VideoInfo,
    index: FrameIndex,
    indices: NDArray[np.int64],
    shortest_edge: int | None,
) -> NDArray[np.uint8]:
    """Decode the frames at ``indices``."""
    wanted = set(index.pts[indices].tolist())
    pictures: dict[int, NDArray[np.uint8]] = {}
    scale = 1.0 if shortest_edge is None else shortest_edge / min(info.width, info.height)
    with opened(path, limits) as (container, stream):
        for frame in container.decode(stream):
            if frame.pts in wanted:
                width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
                array = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
                pictures[frame.pts] = np.ascontiguousarray(np.rot90(array, info.rotation_deg // 90))
                if len(pictures) == len(wanted):
                    break
    missing = len(wanted) - len(pictures)
    if missing:
        raise UserError(f"{path}: {missing} frames could not be decoded; the file is damaged")
    return np.stack([pictures[int(pts)] for pts in index.pts[indices]])
