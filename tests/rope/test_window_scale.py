"""The scale of an input: from its real tokens, from the settings, and what is over the window."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.rope.linear import LinearWindow
from longvid_train.rope.scale import TokenCounts, TrainedWindows, extent_of
from longvid_train.rope.unextended import NoWindow
from longvid_train.rope.visual_yarn import VisualYarnWindow
from longvid_train.rope.window import Window
from longvid_train.rope.yarn import YarnWindow

ONE_VISION = TrainedWindows(visual=6272, language=32_768)


def counts(visual: int, text: int = 100) -> TokenCounts:
    return TokenCounts(visual=visual, total=visual + text)


def test_the_paper_s_scales_at_256_frames() -> None:
    visual = extent_of(VisualYarnWindow(), counts(50_176), ONE_VISION)
    assert (visual.scale, visual.trained_tokens, visual.language_tokens) == (8.0, 6272, 8 * 32_768)
    language = extent_of(YarnWindow(), counts(50_176, text=0), ONE_VISION)
    assert language.scale == pytest.approx(1.53, abs=0.005)
    assert language.trained_tokens == 32_768


@given(st.integers(0, 100_000), st.integers(0, 1000), st.integers(1, 50_000), st.integers(1, 50_000))
def test_the_scale_is_the_ratio_and_never_below_one(visual: int, text: int, trained: int, language: int) -> None:
    windows = TrainedWindows(visual=trained, language=max(language, text))
    by_language = extent_of(YarnWindow(), counts(visual, text), windows)
    assert by_language.scale == max(1.0, (visual + text) / windows.language)
    assert by_language.language_tokens >= visual + text
    generous = TrainedWindows(visual=trained, language=visual + text + 1)
    assert extent_of(VisualYarnWindow(), counts(visual, text), generous).scale == max(1.0, visual / trained)


def test_a_fixed_window_by_scale_or_by_tokens() -> None:
    assert extent_of(LinearWindow(scale=4.0), counts(100), ONE_VISION).scale == 4.0
    assert extent_of(LinearWindow(target_tokens=65_536), counts(100), ONE_VISION).scale == 2.0
    own = extent_of(VisualYarnWindow(trained_tokens=1568), counts(6272), ONE_VISION)
    assert (own.scale, own.trained_tokens) == (4.0, 1568)
    shorter = extent_of(LinearWindow(trained_tokens=1000), TokenCounts(visual=9, total=2000), ONE_VISION)
    assert (shorter.scale, shorter.trained_tokens, shorter.language_tokens) == (2.0, 1000, 2000)
    exact = extent_of(LinearWindow(target_tokens=32_869), TokenCounts(visual=9, total=32_869), ONE_VISION)
    assert exact.language_tokens == 32_869


@pytest.mark.parametrize(
    ("window", "visual", "message"),
    [
        (
            VisualYarnWindow(scale=2.0),
            50_176,
            r"50176 visual tokens are over .* 12544 \(6272 x 2\).*scale to at least 8$",
        ),
        (LinearWindow(scale=1.5), 50_076, r"50176 tokens are over the window of 49152 .*raise scale to at least 1.54$"),
        (LinearWindow(target_tokens=40_000), 50_076, "window of 40000 .*raise target_tokens to at least 50176"),
        (
            LinearWindow(target_tokens=4096),
            10,
            "target_tokens is 4096, below .* 32768 tokens; set it to at least 32768",
        ),
        (VisualYarnWindow(target_tokens=6000), 10, "below the training window of 6272 visual tokens"),
        (NoWindow(), 50_076, "50176 tokens are over the window of 32768 .*extend the window, e.g. with visual_yarn"),
    ],
)
def test_what_is_over_the_window_names_the_number_to_change(window: Window, visual: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        extent_of(window, counts(visual), ONE_VISION)


def test_text_over_the_language_window_is_refused_under_a_visual_one() -> None:
    with pytest.raises(UserError, match=r"sequence of 40100 tokens \(100 visual\).*32768 x 1.*scale to at least 1.23"):
        extent_of(VisualYarnWindow(), counts(100, text=40_000), ONE_VISION)


def test_the_baseline_extrapolates_only_when_told() -> None:
    extent = extent_of(NoWindow(extrapolate=True), counts(50_176), ONE_VISION)
    assert extent.scale == 1.0
    assert extent_of(NoWindow(), counts(32_668), ONE_VISION).scale == 1.0
