"""Images: upright RGB, under the same limits as videos."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longvid_train.errors import UserError
from longvid_train.video import DecodeLimits, read_image


def picture() -> Image.Image:
    array = np.zeros((4, 6, 3), dtype=np.uint8)
    array[0, 0] = (255, 0, 0)
    array[0, 5] = (0, 255, 0)
    return Image.fromarray(array)


def test_pixels_are_read(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (4, 6, 3))
    assert pixels[0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_turns_the_image(tmp_path: Path) -> None:
    image = picture()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (6, 4, 3)
    assert pixels[0, 3].tolist() == [255, 0, 0]
    assert pixels[5, 3].tolist() == [0, 255, 0]


def test_transparency_is_put_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[255] * 3] * 2] * 2


def test_bad_images_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no")
    with pytest.raises(UserError, match=r"text\.png: not an image"):
        read_image(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:4000])
    with pytest.raises(UserError, match=r"cut\.png: the image cannot be read"):
        read_image(tmp_path / "cut.png")
    with pytest.raises(UserError, match=r"4096 pixels a frame .64x64., more than limits.max_pixels_per_frame = 100"):
        read_image(tmp_path / "a.png", limits=DecodeLimits(max_pixels_per_frame=100))
    with pytest.raises(UserError, match="only local images"):
        read_image("https://example.org/a.png")
