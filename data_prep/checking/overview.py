"""The overview of manifests as one HTML file: no script, no network; every text of a row is escaped by the template
engine."""

import base64
import io
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from data_prep.checking.findings import KINDS, NOTICES
from data_prep.checking.pipeline import Checked, CheckOptions, ManifestSummary
from data_prep.checking.rows import Card
from longvid_train.data.manifest import Media, Sample, sample_from_json
from longvid_train.errors import UserError
from longvid_train.video import UniformFrames, read_clip, read_image

SHOWN_FINDINGS = 50
"""Findings of each kind on the page."""

_BARS = 24
_THUMBNAIL_EDGE = 96
_THUMBNAILS = 4
_QUALITY = 80
_TEXT_CHARACTERS = 600


class Bar(NamedTuple):
    """A bar of a histogram: how many values lie in ``[low, high]``; ``share`` of the highest bar, 0 to 1."""

    low: int
    high: int
    rows: int
    share: float


class Thumbnails(NamedTuple):
    """What a card shows of a medium: pictures as data URIs, or why there are none."""

    name: str
    pictures: tuple[str, ...]
    problem: str


class CardView(NamedTuple):
    """A row as the page shows it."""

    line: int
    sample: Sample
    thumbnails: tuple[Thumbnails, ...]


def page(checked: Checked, options: CheckOptions, settings: str) -> str:
    """The page; the pictures of the cards are decoded here, unless files are not looked at.

    Args:
        checked: the outcome of the check.
        options: of the check.
        settings: how it was checked, in words.
    """
    environment = Environment(
        loader=PackageLoader("data_prep.checking", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({"number": number, "shortened": _shortened})
    views = [[_card_view(summary, card, options) for card in summary.cards] for summary in checked.summaries]
    return environment.get_template("overview.html").render(
        summaries=checked.summaries,
        views=views,
        media=checked.media,
        findings=checked.findings,
        meanings={**KINDS, **NOTICES},
        shown=SHOWN_FINDINGS,
        settings=settings,
        histogram=histogram,
    )


def histogram(values: "Counter[int]") -> list[Bar]:
    """Bars for counted whole numbers: of equal width, or each twice as wide as the one before where the largest value
    is more than a hundred times the smallest."""
    if not values:
        return []
    low, high = min(values), max(values)
    edges = _edges(low, high)
    counts = np.histogram(list(values), bins=edges, weights=list(values.values()))[0]
    ranges = zip(edges[:-1], edges[1:], counts.astype(int).tolist(), strict=True)
    tallest = int(counts.max())
    return [Bar(int(start), int(stop) - 1, count, count / tallest) for start, stop, count in ranges]


def number(value: float) -> str:
    """With commas, and at most one decimal."""
    return f"{value:,.0f}" if float(value).is_integer() or value >= 100 else f"{value:,.1f}"


def _edges(low: int, high: int) -> NDArray[np.int64]:
    """Whole numbers, increasing, from ``low`` to beyond ``high``."""
    if high > 100 * max(low, 1):
        powers = 2 ** np.arange(int(high).bit_length() + 1, dtype=np.int64)
        return np.concatenate([[min(low, 0)], powers[powers > low]])
    width = max(1, -(-(high - low + 1) // _BARS))
    return np.arange(low, high + width + 1, width, dtype=np.int64)


def _card_view(summary: ManifestSummary, card: Card, options: CheckOptions) -> CardView:
    sample = sample_from_json(card.raw, require_answer=False, allow_outside=True)
    shown = sample.media if options.rules.check_files and options.decoding.frames != 0 else ()
    folder = Path(summary.path).parent
    return CardView(card.line, sample, tuple(_thumbnails(medium, folder, options) for medium in shown))


def _thumbnails(medium: Media, folder: Path, options: CheckOptions) -> Thumbnails:
    try:
        frames = _frames(medium, folder / medium.path, options)
    except UserError as error:
        return Thumbnails(medium.path, (), str(error))
    return Thumbnails(medium.path, tuple(_data_uri(frame) for frame in frames), "")


def _frames(medium: Media, path: Path, options: CheckOptions) -> NDArray[np.uint8]:
    if medium.type == "image":
        return read_image(path, limits=options.limits)[None]
    part = UniformFrames(count=_THUMBNAILS, at_most=True, start_s=medium.start_s, end_s=medium.end_s)
    return read_clip(
        path,
        part,
        isolated=options.decoding.isolated,
        limits=options.limits,
        shortest_edge=_THUMBNAIL_EDGE,
    ).frames


def _data_uri(frame: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(frame)
    picture.thumbnail((4 * _THUMBNAIL_EDGE, _THUMBNAIL_EDGE))
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _shortened(text: str) -> str:
    return text if len(text) <= _TEXT_CHARACTERS else f"{text[:_TEXT_CHARACTERS]} ... ({len(text):,} characters)"
