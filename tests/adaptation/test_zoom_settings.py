"""Zoom settings: the paper's values, the band of layers by depth, sides of pictures, and what is refused."""

import re

import pytest

from longvid_train.adaptation.reading import parse_adaptation, write_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.errors import UserError
from longvid_train.tokens.grid import FrameGrid
from longvid_train.tokens.slowfast import SlowFastPlan


def test_the_defaults_are_the_papers() -> None:
    zoom = ZoomChoice()
    assert (zoom.draft_tokens, zoom.zoomed_frames, zoom.adjusted_tokens, zoom.every_sentences) == (20, 10, 10, 3)
    assert zoom.temporal_ratio == 1.5


@pytest.mark.parametrize(
    ("model_type", "depth", "first", "last"),
    [
        ("llava_next_video", 32, 5, 20),
        ("llava_next", 40, 6, 25),
        ("llava", 32, 5, 20),
        ("llava_onevision", 28, 10, 25),
        ("llava_onevision", 24, 8, 21),
        ("llava_onevision", 4, 1, 3),
        ("video_llava", 4, 0, 2),
        ("video_llava", 1, 0, 0),
    ],
)
def test_the_band_by_depth(model_type: str, depth: int, first: int, last: int) -> None:
    assert ZoomChoice().band(model_type, depth) == range(first, last + 1)


@pytest.mark.parametrize("depth", range(1, 81))
def test_the_default_band_lies_inside_every_decoder(depth: int) -> None:
    for model_type in ("llava_onevision", "llava_next_video"):
        band = ZoomChoice().band(model_type, depth)
        assert 0 <= band[0] <= band[-1] < depth


def test_a_band_of_ones_own() -> None:
    assert ZoomChoice(layers=(3, 3)).band("llava", 4) == range(3, 4)
    with pytest.raises(UserError, match=r"layers 3 to 4 are outside the decoder's 0 to 3"):
        ZoomChoice(layers=(3, 4)).band("llava", 4)


@pytest.mark.parametrize(("full", "small"), [(336, 224), (384, 256), (224, 149), (56, 37)])
def test_the_overviews_pictures_have_two_thirds_of_the_side(full: int, small: int) -> None:
    assert ZoomChoice().side(full) == small
    assert ZoomChoice(overview_side=100).side(384) == 100


def test_an_overview_must_be_smaller() -> None:
    with pytest.raises(UserError, match="overview_side is 384, but the model's own pictures have 384"):
        ZoomChoice(overview_side=384).side(384)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"draft_tokens": 0}, "draft_tokens is 0; it must be at least 1"),
        ({"zoomed_frames": -1}, "zoomed_frames is -1; it must be at least 0"),
        ({"adjusted_tokens": -1}, "adjusted_tokens is -1"),
        ({"every_sentences": 0}, "every_sentences is 0; it must be at least 1"),
        ({"layers": (5, 4)}, r"layers is [5, 4]; give the first and the last"),
        ({"layers": (-1, 4)}, r"layers is [-1, 4]"),
        ({"overview_side": 0}, "overview_side is 0"),
        ({"temporal_ratio": 0.5}, "temporal_ratio is 0.5"),
        ({"counting": "tables"}, "counting 'tables' is unknown"),
        ({"zoomed_after": "overviews"}, "zoomed_after 'overviews' is unknown"),
    ],
)
def test_what_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        ZoomChoice(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("zoom", [ZoomChoice(), ZoomChoice(layers=(2, 7), zoomed_frames=3, temporal_ratio=2.0)])
def test_zoom_is_written_and_read_back(zoom: ZoomChoice) -> None:
    adaptation = Adaptation(frames=32, zoom=zoom)
    assert parse_adaptation(write_adaptation(adaptation), where="here") == adaptation


def test_an_empty_zoom_is_the_papers_and_none_is_none() -> None:
    assert parse_adaptation("zoom: {}", where="here").zoom == ZoomChoice()
    assert parse_adaptation("zoom: null", where="here").zoom is None
    with pytest.raises(UserError, match=r"here: zoom: 'drafts' is unknown"):
        parse_adaptation("zoom: {drafts: 3}", where="here")


def test_zoom_and_another_plan() -> None:
    with pytest.raises(UserError, match="the plan 'slowfast' cannot be zoomed"):
        Adaptation(plan=SlowFastPlan(), zoom=ZoomChoice())


def test_a_zoom_has_no_fixed_plan() -> None:
    """Training and cost make plans with this; they cannot follow a zoom."""
    with pytest.raises(UserError, match="the adaptation zooms, which is for answers only"):
        Adaptation(zoom=ZoomChoice()).plan_frames(32, FrameGrid(rows=24, columns=24, stride=2))
