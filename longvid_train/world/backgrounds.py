"""The six scenes as pictures: each with a colour, a horizon and a texture of its own, the same on every machine."""

import math
import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from longvid_train.errors import UserError, nearest
from longvid_train.world.episode import SCENES

_SCALE = 4
"""Backgrounds are drawn this many times larger and averaged down, which smooths the edges."""

Colour = tuple[int, int, int]


@lru_cache(maxsize=24)
def background(name: str, size_px: int) -> NDArray[np.uint8]:
    """Return the scene's picture, ``(size_px, size_px, 3)`` uint8 RGB, read-only and cached.

    Raises:
        UserError: no scene has that name.
    """
    if name not in SCENES:
        raise UserError(f"scene '{name}' is unknown{nearest(name, list(SCENES)) or '.'} Scenes: {', '.join(SCENES)}")
    canvas = _Canvas(size_px * _SCALE)
    _PAINTERS[name](canvas)
    picture = np.asarray(canvas.image.resize((size_px, size_px), Image.Resampling.BOX)).copy()
    picture.flags.writeable = False
    return picture


class _Canvas:
    """Drawing in fractions of the frame."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self.image = Image.new("RGB", (size_px, size_px))
        self._draw = ImageDraw.Draw(self.image)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        s = self.size_px
        self._draw.rectangle((left * s, top * s, right * s - 1, bottom * s - 1), fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        s = self.size_px
        self._draw.ellipse(((x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s), fill=colour)

    def shape(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self._draw.polygon([(x * self.size_px, y * self.size_px) for x, y in points], fill=colour)

    def wave(self, top: float, height: float, cycles: float, phase: float, colour: Colour) -> None:
        """Fill everything under a sine line."""
        crest = [(x / 64, top + height * math.sin(2 * math.pi * (cycles * x / 64 + phase))) for x in range(65)]
        self.shape([*crest, (1.0, 1.01), (0.0, 1.01)], colour)


def _forest(canvas: _Canvas) -> None:
    canvas.box(0, 0, 1, 1, (126, 168, 132))
    canvas.box(0, 0.72, 1, 1, (52, 82, 44))
    for row, (base, shade) in enumerate(((0.76, (58, 104, 62)), (0.94, (30, 66, 38)))):
        for column in range(7):
            x = (column + 0.5 * row) / 6
            canvas.box(x - 0.015, base - 0.06, x + 0.015, base + 0.04, (84, 58, 36))
            for tier in range(3):
                top = base - 0.46 + 0.13 * tier
                half = 0.045 + 0.02 * tier
                canvas.shape([(x, top), (x - half, top + 0.18), (x + half, top + 0.18)], shade)


def _desert(canvas: _Canvas) -> None:
    canvas.box(0, 0, 1, 1, (240, 212, 160))
    canvas.disc(0.5, 0.16, 0.09, (255, 240, 196))
    for top, phase, colour in ((0.45, 0.1, (222, 178, 116)), (0.62, 0.55, (204, 152, 92)), (0.8, 0.85, (184, 130, 74))):
        canvas.wave(top, 0.05, 1.2, phase, colour)


def _sea(canvas: _Canvas) -> None:
    canvas.box(0, 0, 1, 1, (176, 214, 232))
    canvas.box(0, 0.26, 1, 1, (36, 112, 150))
    for line in range(9):
        top = 0.3 + 0.085 * line
        canvas.wave(top, 0.014, 6, line * 0.37, (92, 166, 190))
        canvas.wave(top + 0.022, 0.014, 6, line * 0.37, (32, 104 - 4 * line, 142 - 4 * line))


def _night(canvas: _Canvas) -> None:
    canvas.box(0, 0, 1, 1, (14, 16, 42))
    canvas.box(0, 0.86, 1, 1, (6, 8, 20))
    rng = random.Random(4)
    for _ in range(60):
        canvas.disc(rng.random(), 0.84 * rng.random(), rng.choice((0.004, 0.006, 0.009)), (216, 218, 240))
    canvas.disc(0.5, 0.14, 0.085, (232, 230, 208))
    canvas.disc(0.535, 0.12, 0.075, (14, 16, 42))


def _snow(canvas: _Canvas) -> None:
    canvas.box(0, 0, 1, 1, (204, 216, 228))
    canvas.shape([(0.0, 0.55), (0.22, 0.22), (0.46, 0.55)], (160, 176, 196))
    canvas.shape([(0.4, 0.55), (0.7, 0.14), (1.0, 0.55)], (148, 166, 188))
    canvas.wave(0.54, 0.02, 1, 0.2, (238, 243, 248))
    rng = random.Random(5)
    for _ in range(70):
        canvas.disc(rng.random(), rng.random(), rng.choice((0.006, 0.009, 0.012)), (255, 255, 255))


def _city(canvas: _Canvas) -> None:
    canvas.box(0, 0, 1, 1, (188, 172, 178))
    rng = random.Random(6)
    for tower in range(8):
        left, top = tower / 8, rng.uniform(0.12, 0.5)
        shade = rng.choice((74, 90, 106))
        canvas.box(left, top, left + 1 / 8, 0.9, (shade, shade, shade + 8))
        for floor in range(int((0.86 - top) / 0.07)):
            for window in (0.025, 0.075):
                y = top + 0.03 + 0.07 * floor
                lit = rng.random() < 0.5
                canvas.box(left + window, y, left + window + 0.028, y + 0.03, (226, 206, 140) if lit else (52, 54, 64))
    canvas.box(0, 0.9, 1, 1, (48, 48, 52))
    for dash in range(6):
        canvas.box(dash / 6 + 0.03, 0.94, dash / 6 + 0.12, 0.955, (220, 220, 214))


_PAINTERS: dict[str, Callable[[_Canvas], None]] = {
    "forest": _forest,
    "desert": _desert,
    "sea": _sea,
    "night": _night,
    "snow": _snow,
    "city": _city,
}
