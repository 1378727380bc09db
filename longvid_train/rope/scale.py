"""The scale factor of one input: from its tokens and the windows the model was trained on."""

import math
from dataclasses import dataclass

from longvid_train.errors import UserError
from longvid_train.rope.window import Window


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Tokens of one input.

    Attributes:
        visual: tokens of the frames. A token after the video is text here, so that 32 frames of LLaVA-OneVision are its
            visual window of 6272 exactly.
        total: the whole sequence: visual tokens, text, and the tokens that may be generated.
    """

    visual: int
    total: int

    def __post_init__(self) -> None:
        """Assert that the parts are not more than the whole."""
        assert 0 <= self.visual <= self.total


@dataclass(frozen=True, kw_only=True)
class TrainedWindows:
    """What a backbone was trained on, in tokens.

    Attributes:
        visual: visual tokens of its longest training videos, ``L_train_v``; ``None`` where nobody states it.
        language: window of its language model.
    """

    visual: int | None
    language: int


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How far one input's window reaches.

    Attributes:
        scale: ``s``, at least 1.
        trained_tokens: the window ``L`` that was extended.
        measured_tokens: the tokens of this input that were measured against it.
        language_tokens: the longest sequence the extended model takes, ``s`` times its language window.
    """

    scale: float
    trained_tokens: int
    measured_tokens: int
    language_tokens: int


def extent_of(window: Window, counts: TokenCounts, trained: TrainedWindows) -> Extent:
    """The scale that ``window`` uses for an input.

    Raises:
        UserError: a fixed window below the training window, an input over the extended window, or a visual window that
            neither the backbone nor ``trained_tokens`` states.
    """
    visual = window.measure == "visual"
    length = window.trained_tokens or (trained.visual if visual else trained.language)
    if length is None:
        raise UserError(
            f"window '{window.kind}' measures visual tokens, but how many this model was trained on is not stated; set "
            "window.trained_tokens to the visual tokens of its training videos, or measure 'language'"
        )
    measured = counts.visual if visual else counts.total
    scale = _scale(window, length, measured)
    language = trained.language if visual else length
    extent = Extent(
        scale=scale,
        trained_tokens=length,
        measured_tokens=measured,
        language_tokens=_product(scale, language),
    )
    if not window.extrapolates:
        _check_fits(window, extent, counts, language)
    return extent


def _scale(window: Window, length: int, measured: int) -> float:
    if not window.extends:
        return 1.0
    if window.scale is not None:
        return float(window.scale)
    if window.target_tokens is None:
        return max(1.0, measured / length)
    if window.target_tokens < length:
        raise UserError(
            f"target_tokens is {window.target_tokens}, below the training window of {length} {_what(window)}; "
            f"set it to at least {length}"
        )
    return window.target_tokens / length


def _check_fits(window: Window, extent: Extent, counts: TokenCounts, language: int) -> None:
    reach = _product(extent.scale, extent.trained_tokens)
    if extent.measured_tokens > reach:
        raise UserError(
            f"{extent.measured_tokens} {_what(window)} are over the window of {reach} "
            f"({extent.trained_tokens} x {extent.scale:g}); use fewer frames, or {_remedy(window, extent)}"
        )
    if counts.total > extent.language_tokens:
        raise UserError(
            f"the sequence of {counts.total} tokens ({counts.visual} visual) is over the language window of "
            f"{extent.language_tokens} ({language} x {extent.scale:g}); use fewer new tokens or less text, "
            f"or set scale to at least {_round_up(counts.total / language):g}"
        )


def _remedy(window: Window, extent: Extent) -> str:
    if not window.extends:
        return "extend the window, e.g. with visual_yarn"
    if window.target_tokens is not None:
        return f"raise target_tokens to at least {extent.measured_tokens}"
    return f"raise scale to at least {_round_up(extent.measured_tokens / extent.trained_tokens):g}"


def _what(window: Window) -> str:
    return "visual tokens" if window.measure == "visual" else "tokens"


def _product(scale: float, tokens: int) -> int:
    """``floor(scale * tokens)``, forgiving the rounding of a scale that was itself a quotient of token counts."""
    return math.floor(scale * tokens * (1 + 1e-12))


def _round_up(scale: float) -> float:
    return math.ceil(scale * 100) / 100
