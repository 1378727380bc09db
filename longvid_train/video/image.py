"""A still image as one frame, under the same limits as a video."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from longvid_train.errors import UserError
from longvid_train.video.container import checked_local, is_remote
from longvid_train.video.limits import DecodeLimits

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def read_image(path: str | Path, *, limits: DecodeLimits = DecodeLimits()) -> NDArray[np.uint8]:  # noqa: B008 - frozen
    """Read an image file.

    Returns:
        ``(height, width, 3)`` uint8 RGB, turned upright by its EXIF orientation; transparency is put on white.

    Raises:
        UserError: the file is missing, not an image of `FORMATS`, cut off, or breaks a limit.
    """
    if is_remote(str(path)):
        raise UserError(f"{path}: only local images are opened; download it first")
    local = checked_local(str(path), limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(local, formats=FORMATS) as image:
                limits.check_picture(str(path), *image.size)
                return np.asarray(_flattened(ImageOps.exif_transpose(image)))
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image of {', '.join(FORMATS)}") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the image cannot be read ({error}); it may be cut off") from error


def _flattened(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
