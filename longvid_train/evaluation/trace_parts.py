"""What a trace page shows, whichever method was traced: pictures, and views that lay heat and marks over them.

A view is one thing to look at: a sentence of the answer, or a query of the context attention. ``h``, ``w`` pixels.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvid_train.evaluation.templating import data_uri

MOST_PICTURES = 512
"""Pictures of a group; of more frames an even choice is drawn. Every frame has its bar."""

HEAT_CELLS = 3 << 20
"""Cells of heat on a page, a byte each: beyond it a view keeps its pictures with the most heat."""

_SIDES = ((32, 256), (128, 128), (MOST_PICTURES, 80))
"""Longest side in pixels of a picture, by the pictures of its group."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One frame at one resolution.

    Attributes:
        number: what views call it.
        place: number of its bar on the timeline.
        time_s: in the video; ``None`` for a still image.
        image: ``(h, w, 3)`` uint8 as the vision tower saw it, so that cells lie where they were.
        rows: cells from top to bottom.
        columns: cells from left to right.
        chosen: whether a zoom chose it.
    """

    number: int
    place: int
    time_s: float | None
    image: NDArray[np.uint8]
    rows: int
    columns: int
    chosen: bool = False

    def uri(self, side: int) -> str:
        """As a JPEG whose longer side is at most ``side``."""
        picture = Image.fromarray(self.image)
        picture.thumbnail((side, side))
        return data_uri(np.asarray(picture))


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Pictures under one heading."""

    title: str
    note: str
    pictures: tuple[Picture, ...]
    large: bool = False

    @property
    def side(self) -> int:
        """Longest side of its pictures."""
        return next((side for most, side in _SIDES if len(self.pictures) <= most), _SIDES[-1][1])


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One frame on the timeline."""

    time_s: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A cell of a picture that something was done to: ``"copied"``, ``"dropped"`` or ``"top"``."""

    picture: int
    row: int
    column: int
    kind: str


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One choice of the reader.

    Attributes:
        label: the sentence, or what else is looked at.
        detail: a few words behind it.
        bars: height of each frame's bar, 0 to 1.
        heat: by picture number, 0 to 1 a cell, row by row.
        marks: cells to mark.
        scale: what a full bar and full heat stand for.
    """

    label: str
    detail: str
    bars: tuple[float, ...]
    heat: Mapping[int, NDArray[np.float64]]
    marks: tuple[Mark, ...]
    scale: str


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A number that sums something up."""

    name: str
    number: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Share:
    """A part of the time."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header; the first column names the row."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TracePage:
    """Everything on a page.

    Attributes:
        title: the question.
        answer: as given.
        facts: one line under it.
        tiles: the numbers at the top.
        views_title: heading of the choice of views.
        views_note: what heat, bars and marks are.
        views: at least one.
        bars: one a frame, in time order.
        groups: of pictures.
        shares: of the time; empty where it was not measured.
        tables: further numbers.
        notes: lines for the reader.
    """

    title: str
    answer: str
    facts: str
    tiles: tuple[Tile, ...]
    views_title: str
    views_note: str
    views: tuple[View, ...]
    bars: tuple[Bar, ...]
    groups: tuple[Group, ...]
    shares: tuple[Share, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def view_values(view: View, cells: int) -> dict[str, Any]:
    """A view as the page's script reads it.

    Args:
        view: to write.
        cells: of heat to keep at most, those of the pictures with the hottest cell first.

    Returns:
        Bars in thousandths, heat as base64 of a byte a cell by picture, and marks.
    """
    return {
        "bars": [round(1000 * height) for height in view.bars],
        "heat": {str(number): _coded(view.heat[number]) for number in hottest(view.heat, cells)},
        "marks": [[mark.picture, mark.row, mark.column, mark.kind] for mark in view.marks],
        "scale": view.scale,
    }


def hottest(heat: Mapping[int, NDArray[np.float64]], cells: int) -> list[int]:
    """Numbers of the pictures to keep within ``cells``, in order."""
    kept, used = [], 0
    for number in sorted(heat, key=lambda one: -float(heat[one].max(initial=0.0))):
        used += heat[number].size
        if used > cells:
            break
        kept.append(number)
    return sorted(kept)


def _coded(heat: NDArray[np.float64]) -> str:
    return base64.b64encode((255 * heat).round().astype(np.uint8).tobytes()).decode("ascii")


def relative(values: Sequence[float]) -> tuple[float, ...]:
    """Values from 0 as shares of the largest; all 0 where that is 0."""
    most = max(values, default=0.0)
    return tuple(value / most if most > 0 else 0.0 for value in values)
