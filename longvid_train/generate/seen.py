"""Frames as the vision tower sees them: resized, cropped and coloured by the checkpoint's own preprocessing."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from longvid_train.generate.engine import Engine
from longvid_train.generate.media import Medium, ReadOptions
from longvid_train.video import AtTimes, read_clip, read_image

CHUNK = 32
"""Frames decoded and preprocessed at once."""


def seen_frames(medium: Medium, engine: Engine, read: ReadOptions, frames: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Decode some frames of a medium again, for a trace or a picture.

    Preprocessing is undone by what it makes of black and of white: it is linear in a channel. Values that bicubic
    filtering put beyond black and white are cut there.

    Args:
        medium: as asked about.
        engine: preprocesses.
        read: how files are read.
        frames: numbers of the frames among those shown, rising.

    Returns:
        ``(side, side, 3)`` uint8 RGB each.

    Raises:
        UserError: the file cannot be decoded.
    """
    found: list[NDArray[np.uint8]] = []
    for start in range(0, len(frames), CHUNK):
        found += _seen(_decoded(medium, read, frames[start : start + CHUNK]), engine)
    return found


def _decoded(medium: Medium, read: ReadOptions, frames: Sequence[int]) -> NDArray[np.uint8]:
    """``(n, height, width, 3)`` uint8."""
    if medium.frames is not None:
        return medium.frames[list(frames)]
    if medium.sampling is None:
        return read_image(medium.path, limits=read.limits)[None]
    times = AtTimes(times_s=tuple(medium.timestamps_s[frame] for frame in frames))
    return read_clip(medium.path, times, reader=read.reader, isolated=read.isolated, limits=read.limits).frames


def _seen(frames: NDArray[np.uint8], engine: Engine) -> list[NDArray[np.uint8]]:
    ends = np.stack([np.zeros_like(frames[0]), np.full_like(frames[0], 255)])
    black, white = engine.preprocess(ends).float().mean(dim=(2, 3), keepdim=True)
    shares = (engine.preprocess(frames).float() - black) / (white - black)
    pixels = (255 * shares).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return list(pixels.numpy())
