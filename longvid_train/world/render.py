"""Frames of an episode: a background, and on it at most two objects, each with a digit on a white plate.

Objects and plates are drawn once per size, four times larger, averaged down and kept; a frame is a copy and a few
blends.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from longvid_train.errors import UserError
from longvid_train.world.backgrounds import background
from longvid_train.world.episode import SLIDE_S, Appearance, Episode
from longvid_train.world.glyphs import GLYPH_HEIGHT, GLYPH_WIDTH, glyph

MIN_SIZE_PX = 32
"""Below this a digit has fewer pixels than its bitmap."""

PALETTE = {
    "red": (224, 32, 36),
    "green": (40, 190, 60),
    "blue": (40, 84, 236),
    "yellow": (252, 226, 30),
    "purple": (166, 52, 206),
    "orange": (250, 132, 16),
}
"""RGB of each colour name."""

_SCALE = 4
_INK = (16, 16, 20)
_WHITE = (255, 255, 255)
_OUTLINE = 0.035
_HALO = 0.02
_DIGIT_HEIGHT = 0.43
_BAND = 0.11


def render_frame(episode: Episode, time_s: float, size_px: int = 112) -> NDArray[np.uint8]:
    """Render what is on screen at ``time_s``.

    Args:
        episode: the episode to draw.
        time_s: seconds from the start of the episode.
        size_px: width and height of the frame, at least ``MIN_SIZE_PX``.

    Returns:
        ``(size_px, size_px, 3)`` uint8 RGB, a fresh array.

    Raises:
        UserError: ``size_px`` is too small for a digit to be read.
    """
    if size_px < MIN_SIZE_PX:
        raise UserError(f"size {size_px} px is too small for a digit to be read; use at least {MIN_SIZE_PX}")
    frame = background(episode.scene_at(time_s).name, size_px).copy()
    for appearance in episode.sliding_or_visible_at(time_s):
        left, top, width = object_box(appearance, time_s, size_px)
        _blend(frame, _body(appearance.colour, appearance.shape, width), left, top)
        plate = _plate(appearance.digit, width)
        height_px, width_px = plate.keep.shape[:2]
        centre_y = top + width * _PLATE_CENTRE.get(appearance.shape, 0.5)
        _blend(frame, plate, left + (width - width_px) // 2, round(centre_y - height_px / 2))
    return frame


def object_box(appearance: Appearance, time_s: float, size_px: int) -> tuple[int, int, int]:
    """Return ``(left, top, width)`` of the object's square in pixels; part or all of it may be off the frame."""
    x, y = _centre(appearance, time_s)
    width = int(appearance.size * size_px)
    return round(x * size_px - width / 2), round(y * size_px - width / 2), width


def _centre(appearance: Appearance, time_s: float) -> tuple[float, float]:
    """Slide in from the nearer side edge, drift from start to end, slide out to the nearer side edge."""
    if time_s < appearance.enter_s:
        return _slide(appearance.start_xy, appearance.size, (appearance.enter_s - time_s) / SLIDE_S)
    if time_s >= appearance.leave_s:
        return _slide(appearance.end_xy, appearance.size, (time_s - appearance.leave_s) / SLIDE_S)
    share = (time_s - appearance.enter_s) / (appearance.leave_s - appearance.enter_s)
    (start_x, start_y), (end_x, end_y) = appearance.start_xy, appearance.end_xy
    return start_x + share * (end_x - start_x), start_y + share * (end_y - start_y)


def _slide(centre: tuple[float, float], size: float, away: float) -> tuple[float, float]:
    """``away`` runs from 0 (in place) to 1 (just off the frame)."""
    off_x = -size / 2 if centre[0] < 0.5 else 1 + size / 2
    return centre[0] + away * (off_x - centre[0]), centre[1]


@dataclass(frozen=True)
class _Sprite:
    """``paint`` is colour times alpha, ``(h, w, 3)`` float32; ``keep`` is what stays of the frame, ``(h, w, 1)``."""

    paint: NDArray[np.float32]
    keep: NDArray[np.float32]


def _blend(frame: NDArray[np.uint8], sprite: _Sprite, left: int, top: int) -> None:
    height, width = sprite.keep.shape[:2]
    y0, y1 = max(top, 0), min(top + height, frame.shape[0])
    x0, x1 = max(left, 0), min(left + width, frame.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    window = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    target = frame[y0:y1, x0:x1]
    target[...] = sprite.paint[window] + target * sprite.keep[window] + np.float32(0.5)


@lru_cache(maxsize=1024)
def _body(colour: str, shape: str, width_px: int) -> _Sprite:
    halo, outline, fill = _masks(shape, width_px * _SCALE)
    return _sprite(_layers([(halo, _WHITE), (outline, _INK), (fill, PALETTE[colour])]))


@lru_cache(maxsize=64)
def _masks(shape: str, size_px: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Halo, outline and fill of a shape, all within ``size_px``."""
    margin_px = (_OUTLINE + _HALO) * size_px
    fill = _shape_mask(shape, size_px, margin_px)
    halo = _grow(fill, margin_px)
    if shape == "ring":
        _cut_hole(halo, margin_px)
    return halo, _grow(fill, _OUTLINE * size_px), fill


@lru_cache(maxsize=512)
def _plate(digit: str, object_px: int) -> _Sprite:
    """The digit's height is ``_DIGIT_HEIGHT`` of the object's width, rounded to whole pixels."""
    height_px = max(GLYPH_HEIGHT, round(object_px * _DIGIT_HEIGHT))
    width_px = max(GLYPH_WIDTH, round(height_px * GLYPH_WIDTH / GLYPH_HEIGHT))
    pad_px = max(1, round(height_px / 10))
    ink = Image.fromarray(glyph(digit).astype(np.uint8) * 255).resize(
        (width_px * _SCALE, height_px * _SCALE), Image.Resampling.NEAREST
    )
    board = Image.new("L", ((width_px + 2 * pad_px) * _SCALE, (height_px + 2 * pad_px) * _SCALE), 255)
    written = Image.new("L", board.size, 0)
    written.paste(ink, (pad_px * _SCALE, pad_px * _SCALE))
    return _sprite(_layers([(board, _WHITE), (written, _INK)]))


def _layers(layers: list[tuple[Image.Image, tuple[int, int, int]]]) -> Image.Image:
    """Stack masks of one size, each in its colour, bottom first, on nothing."""
    stack = Image.new("RGBA", layers[0][0].size, (0, 0, 0, 0))
    for mask, colour in layers:
        stack.paste((*colour, 255), (0, 0), mask)
    return stack


def _sprite(large: Image.Image) -> _Sprite:
    rgba = np.asarray(large).astype(np.float32)
    alpha = rgba[..., 3:] / np.float32(255)
    return _Sprite(_shrink(rgba[..., :3] * alpha), np.float32(1) - _shrink(alpha))


def _shrink(image: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width, channels = image.shape
    blocks = image.reshape(height // _SCALE, _SCALE, width // _SCALE, _SCALE, channels)
    mean: NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return mean


def _grow(mask: Image.Image, distance_px: float) -> Image.Image:
    """Widen a mask by a square brush. Masks have a margin at least ``distance_px`` wide, so nothing wraps round."""
    grown = np.asarray(mask)
    for axis in (0, 1):
        still = grown
        for step in range(1, int(distance_px) + 1):
            grown = np.maximum(grown, np.maximum(np.roll(still, step, axis), np.roll(still, -step, axis)))
    return Image.fromarray(grown)


_PLATE_CENTRE = {"triangle": 0.62}
"""Where the plate's centre stands, in object heights from the top; the middle unless named here."""


def _shape_mask(shape: str, size_px: int, margin_px: float) -> Image.Image:
    mask = Image.new("L", (size_px, size_px), 0)
    draw = ImageDraw.Draw(mask)
    low, high = margin_px, size_px - 1 - margin_px
    if shape in ("circle", "ring"):
        draw.ellipse((low, low, high, high), fill=255)
        if shape == "ring":
            _cut_hole(mask, margin_px)
        return mask
    draw.polygon([(low + x * (high - low), low + y * (high - low)) for x, y in _OUTLINES[shape]], fill=255)
    return mask


def _cut_hole(mask: Image.Image, margin_px: float) -> None:
    """Let the background show through a ring."""
    low, high = margin_px, mask.width - 1 - margin_px
    band = _BAND * (high - low)
    ImageDraw.Draw(mask).ellipse((low + band, low + band, high - band, high - band), fill=0)


def _star_points() -> list[tuple[float, float]]:
    """A five-pointed star that fills the unit square's width."""
    points = []
    for step in range(10):
        radius = 0.526 if step % 2 == 0 else 0.25
        angle = math.pi * step / 5
        points.append((0.5 + radius * math.sin(angle), 0.526 - radius * math.cos(angle)))
    return points


_ARM = 0.31
"""Where an arm of the cross begins, in fractions of its width."""

_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "star": _star_points(),
    "cross": [
        (_ARM, 0),
        (1 - _ARM, 0),
        (1 - _ARM, _ARM),
        (1, _ARM),
        (1, 1 - _ARM),
        (1 - _ARM, 1 - _ARM),
        (1 - _ARM, 1),
        (_ARM, 1),
        (_ARM, 1 - _ARM),
        (0, 1 - _ARM),
        (0, _ARM),
        (_ARM, _ARM),
    ],
}
"""Corners of the straight-edged shapes in the unit square."""
