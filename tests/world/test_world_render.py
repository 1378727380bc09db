import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from longvid_train.errors import UserError
from longvid_train.world.backgrounds import background
from longvid_train.world.episode import (
    COLOURS,
    DIGITS,
    SCENES,
    SHAPES,
    Appearance,
    Episode,
    Scene,
    WorldSettings,
    make_episode,
)
from longvid_train.world.glyphs import glyph
from longvid_train.world.render import PALETTE, object_box, render_frame


def still(appearance: Appearance | None, scene: str = "forest") -> Episode:
    return Episode(
        episode_id="x",
        split="test",
        duration_s=8.0,
        scenes=(Scene(name=scene, start_s=0.0, end_s=8.0),),
        appearances=() if appearance is None else (appearance,),
        subtitles=(),
    )


def thing(**changes: object) -> Appearance:
    usual = Appearance(
        colour="red",
        shape="square",
        digit="7",
        enter_s=2.0,
        leave_s=6.0,
        start_xy=(0.25, 0.3),
        end_xy=(0.25, 0.7),
        size=0.44,
    )
    return dataclasses.replace(usual, **changes)


def changed_box(episode: Episode, time_s: float, size_px: int = 112) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels that differ from the bare background."""
    empty = render_frame(dataclasses.replace(episode, appearances=()), time_s, size_px)
    rows, columns = np.nonzero((render_frame(episode, time_s, size_px) != empty).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_a_frame_is_a_fresh_array_of_the_asked_size() -> None:
    episode = still(thing())
    first = render_frame(episode, 3.0, 64)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    first[:] = 0
    assert render_frame(episode, 3.0, 64).any()


def test_an_empty_frame_is_the_background() -> None:
    for scene in SCENES:
        assert np.array_equal(render_frame(still(None, scene), 1.0), background(scene, 112))


def test_backgrounds_differ_from_each_other() -> None:
    for one, other in itertools.combinations(SCENES, 2):
        difference = np.abs(background(one, 112).astype(int) - background(other, 112)).mean()
        assert difference > 20, (one, other)


def test_an_object_drifts_from_start_to_end_and_is_as_wide_as_said() -> None:
    episode = still(thing())
    for time_s, centre_y in ((2.0, 0.3), (4.0, 0.5), (5.999, 0.7)):
        left, top, right, bottom = changed_box(episode, time_s)
        assert abs((left + right) / 2 - 0.25 * 112) <= 1
        assert abs((top + bottom) / 2 - centre_y * 112) <= 1
        assert abs((right - left) - 0.44 * 112) <= 2


@pytest.mark.parametrize(("x", "edge"), [(0.25, "left"), (0.75, "right")])
def test_an_object_slides_in_and_out_at_the_nearer_edge(x: float, edge: str) -> None:
    episode = still(thing(start_xy=(x, 0.5), end_xy=(x, 0.5)))
    bare = render_frame(still(None), 0.0)
    for time_s in (1.75, 6.25):
        assert np.array_equal(render_frame(episode, time_s), bare)
    for time_s in (1.875, 6.125):
        left, _, right, _ = changed_box(episode, time_s)
        assert (left == 0 and right < 45) if edge == "left" else (right == 112 and left > 67)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_square_is_mostly_its_colour(colour: str) -> None:
    frame = render_frame(still(thing(colour=colour)), 4.0)
    area = (np.abs(frame.astype(int) - PALETTE[colour]).max(axis=2) <= 2).sum()
    assert area > 0.3 * (0.44 * 112) ** 2


def test_colours_are_far_apart() -> None:
    for one, other in itertools.combinations(PALETTE.values(), 2):
        assert np.abs(np.array(one) - other).sum() > 80


def test_shapes_stand_out_from_each_other_under_the_same_digit() -> None:
    pictures = {
        shape: np.asarray(Image.fromarray(render_frame(still(thing(shape=shape)), 4.0)).resize((56, 56))).astype(int)
        for shape in SHAPES
    }
    for one, other in itertools.combinations(SHAPES, 2):
        differing = (np.abs(pictures[one] - pictures[other]).max(axis=2) > 60).sum()
        assert differing >= 25, (one, other, differing)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_digit_can_be_read_at_56_pixels(shape: str) -> None:
    """Cut the digit out of the halved frame and compare with every digit of a halved plate in another place."""

    def cut(digit: str, shift_px: int) -> np.ndarray:
        y = 0.5 + shift_px / 112
        appearance = thing(shape=shape, digit=digit, start_xy=(0.25, y), end_xy=(0.25, y))
        small = Image.fromarray(render_frame(still(appearance, "city"), 4.0)).resize(
            (56, 56), Image.Resampling.BILINEAR
        )
        grey = np.asarray(small.convert("L")).astype(float)
        half = 5 if shape == "ring" else 6
        offset = 3 if shape == "triangle" else 0
        middle_y = 28 + shift_px // 2 + offset
        return grey[middle_y - half : middle_y + half, 14 - half + 1 : 14 + half - 1]

    known = {digit: cut(digit, 0) for digit in DIGITS}
    for digit in DIGITS:
        seen = cut(digit, 8)
        errors = {name: float(np.abs(seen - picture).mean()) for name, picture in known.items()}
        ordered = sorted(errors.values())
        assert min(errors, key=errors.__getitem__) == digit
        assert ordered[1] > ordered[0] + 5


def test_glyphs_are_ten_different_bitmaps() -> None:
    bitmaps = [glyph(digit) for digit in DIGITS]
    assert {bitmap.shape for bitmap in bitmaps} == {(7, 5)}
    for one, other in itertools.combinations(bitmaps, 2):
        assert (one != other).sum() >= 2
    with pytest.raises(UserError, match="'x'"):
        glyph("x")


def test_objects_never_cover_each_other() -> None:
    checked = 0
    for index in range(12):
        episode = make_episode(WorldSettings(duration_s=12.0, overlap=0.9), split="train", seed=5, index=index)
        for tenth in range(120):
            time_s = tenth / 10
            boxes = [object_box(a, time_s, 112) for a in episode.sliding_or_visible_at(time_s)]
            if len(boxes) == 2:
                (left_a, _, width_a), (left_b, _, _) = sorted(boxes)
                assert left_a + width_a <= left_b
                checked += 1
    assert checked > 200


def test_a_frame_too_small_for_digits_is_refused() -> None:
    with pytest.raises(UserError, match="at least 32"):
        render_frame(still(None), 0.0, 16)
