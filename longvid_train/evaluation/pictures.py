"""One sample question as a PNG for documents: the frames in a row, the question and both answers under them."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from longvid_train.evaluation.charts import INK, MUTED
from longvid_train.evaluation.formatting import clock, without_placeholders
from longvid_train.evaluation.samples import SampleQuestion, Strip, thin_out
from longvid_train.evaluation.summary import verdict
from longvid_train.generate.record import AnswerRecord as Answer

_COLUMNS = 8
_WIDTH_IN = 11.0
_COLOURS = {"right": "#0a7a48", "partly right": "#8a5a00", "wrong": "#b3261e"}


def best_sample(samples: Sequence[SampleQuestion]) -> SampleQuestion | None:
    """The sample that shows most: one with frames, right after and not before if there is one, with the most frames."""
    shown = [sample for sample in samples if sample.strips]
    return max(
        shown,
        key=lambda sample: (sample.after.correct == 1, sample.before.correct < 1, len(sample.strips[0].frames)),
        default=None,
    )


def sample_png(sample: SampleQuestion) -> bytes:
    """Draw a sample with frames, 1100 pixels wide, on white; at most 8 frames, evenly chosen."""
    strip = sample.strips[0]
    chosen = thin_out(len(strip.frames), _COLUMNS, strip.evidence)
    lines = textwrap.wrap(without_placeholders(sample.after.question), 92)
    with mpl.rc_context({"font.family": "DejaVu Sans", "text.color": INK, "text.parse_math": False}):
        aspect = strip.frames[0].shape[0] / strip.frames[0].shape[1]
        frames_in, text_in = aspect * (_WIDTH_IN - 0.4) / _COLUMNS + 0.3, 0.3 * len(lines) + 0.95
        figure = Figure(figsize=(_WIDTH_IN, frames_in + text_in + 0.2), facecolor="white")
        _draw_frames(figure, strip, chosen, top=1 - 0.1 / figure.get_figheight())
        _draw_text(figure, sample, lines, text_in)
        return _png(figure)


def _draw_frames(figure: Figure, strip: Strip, chosen: Sequence[int], top: float) -> None:
    width, gap, left = (_WIDTH_IN - 0.4) / _COLUMNS / _WIDTH_IN, 0.006, 0.2 / _WIDTH_IN
    for column, index in enumerate(chosen):
        frame, time_s = strip.frames[index], strip.times_s[index]
        height = (width - gap) * frame.shape[0] / frame.shape[1] * _WIDTH_IN / figure.get_figheight()
        axes: Any = figure.add_axes((left + column * width + gap / 2, top - height, width - gap, height))
        axes.imshow(frame, interpolation="lanczos")
        axes.axis("off")
        if time_s is not None:
            figure.text(
                left + (column + 0.5) * width,
                top - height - 0.06 / figure.get_figheight(),
                clock(time_s),
                ha="center",
                va="top",
                fontsize=9,
                color=MUTED,
            )


def _draw_text(figure: Figure, sample: SampleQuestion, lines: Sequence[str], text_in: float) -> None:
    height, left = figure.get_figheight(), 0.2 / _WIDTH_IN + 0.003
    place = text_in
    for line in lines:
        figure.text(left, place / height, line, fontsize=13, fontweight="bold", va="top")
        place -= 0.3
    for label, answer in (("before the stage", sample.before), ("after the stage", sample.after)):
        _draw_answer(figure, (left, (place - 0.02) / height), label, answer)
        place -= 0.27
    figure.text(left, (place - 0.02) / height, "truth", fontsize=11, color=MUTED, va="top")
    figure.text(left + 0.14, (place - 0.02) / height, _shorten(sample.after.truth), fontsize=11, va="top")


def _draw_answer(figure: Figure, place: tuple[float, float], label: str, answer: Answer) -> None:
    left, top = place
    figure.text(left, top, label, fontsize=11, color=MUTED, va="top")
    said = f"{_shorten(answer.answer) or '(nothing)'}   [{verdict(answer)}]"
    figure.text(left + 0.14, top, said, fontsize=11, color=_COLOURS[verdict(answer)], va="top")


def _shorten(text: str) -> str:
    return textwrap.shorten(text, 96, placeholder=" ...")


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
    return stream.getvalue()
