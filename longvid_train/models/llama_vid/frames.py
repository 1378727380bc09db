"""Frames to pixels the way CLIP's image processor does it, many at once and without torchvision.

``N`` frames; ``side`` is the side of the square the tower takes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from longvid_train.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize_and_crop(frames: NDArray[np.uint8], side: int) -> torch.Tensor:
    """Bicubic resize of the shorter edge to ``side`` with antialiasing, then a centre crop.

    Args:
        frames: ``(N, height, width, 3)`` uint8 RGB.
        side: pixels.

    Returns:
        ``(N, 3, side, side)`` uint8 (channels last in memory), within two grey levels of PIL's resize, width
        first and then height (nearly always one: the two round at different points).

    Raises:
        UserError: the array is not of that shape and type.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise UserError(
            f"frames are {frames.dtype} of shape {frames.shape}; they must be uint8 of shape (N, height, width, 3)"
        )
    height, width = frames.shape[1:3]
    if min(height, width) == 0:
        raise UserError(f"frames have shape {frames.shape}: an empty picture cannot be resized")
    pixels = torch.from_numpy(np.array(frames, order="C")).permute(0, 3, 1, 2)
    if min(height, width) != side:
        size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
        pixels = interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (pixels.shape[2] - side) // 2, (pixels.shape[3] - side) // 2
    return pixels[:, :, top : top + side, left : left + side]


def normalise(pixels: torch.Tensor, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> torch.Tensor:
    """``(N, 3, h, w)`` uint8 to contiguous float32 ``(x / 255 - mean) / std`` per channel."""
    deviation = torch.tensor(std).view(1, 3, 1, 1)
    scaled = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return scaled.mul_(1 / (255 * deviation)).sub_(torch.tensor(mean).view(1, 3, 1, 1) / deviation)
