"""The training-free methods that the claims compare, under the names of their rows.

The same adaptations stand as files under ``configs/adaptations`` (tested), for use with any command.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from longvid_train.adaptation.reading import adaptation_values
from longvid_train.adaptation.settings import Adaptation
from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.rope.linear import LinearWindow
from longvid_train.rope.ntk import NtkWindow
from longvid_train.rope.unextended import NoWindow
from longvid_train.rope.visual_yarn import VisualYarnWindow
from longvid_train.rope.yarn import YarnWindow
from longvid_train.tokens.progressive import ProgressivePlan
from longvid_train.tokens.slowfast import SlowFastPlan
from longvid_train.tokens.uniform import UniformPlan


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of a table.

    Attributes:
        name: for programs.
        words: for people.
        file: of the adaptation, under ``configs/adaptations``.
        adaptation: what it says.
        weights: tells adapters apart that were trained under this adaptation; empty for the model as it is.
    """

    name: str
    words: str
    file: str
    adaptation: Adaptation
    weights: str = ""

    def digest(self) -> str:
        """Tells answers apart that were made under another adaptation or with other weights."""
        values = json.dumps([adaptation_values(self.adaptation), self.weights], sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()[:12]


TUNED = "visual_yarn_lora"


def tuned_method(adaptation: Adaptation, weights: str) -> Method:
    """The row of an adapter that was trained under ``adaptation``."""
    return Method(name=TUNED, words="visual YaRN + LoRA", file="", adaptation=adaptation, weights=weights)


_NANO_VISUAL_YARN = VisualYarnWindow(bounds="share", alpha=0.2, beta=0.8)

VISUAL_WINDOW_METHODS = (
    Method(name="none", words="no extension", file="none", adaptation=Adaptation(window=NoWindow(extrapolate=True))),
    Method(name="linear", words="PI, language window", file="linear", adaptation=Adaptation(window=LinearWindow())),
    Method(name="ntk", words="NTK, language window", file="ntk", adaptation=Adaptation(window=NtkWindow())),
    Method(
        name="yarn",
        words="YaRN, language window",
        file="nano/yarn",
        adaptation=Adaptation(window=YarnWindow(bounds="share", alpha=0.2, beta=0.8)),
    ),
    Method(
        name="visual_linear",
        words="PI, visual window",
        file="nano/visual_linear",
        adaptation=Adaptation(window=LinearWindow(measure="visual")),
    ),
    Method(
        name="visual_ntk",
        words="NTK, visual window",
        file="nano/visual_ntk",
        adaptation=Adaptation(window=NtkWindow(measure="visual")),
    ),
    Method(
        name="visual_yarn_turns",
        words="visual YaRN, beta 32 turns",
        file="visual_yarn",
        adaptation=Adaptation(window=VisualYarnWindow()),
    ),
    Method(
        name="visual_yarn",
        words="visual YaRN",
        file="visual_yarn_small_window",
        adaptation=Adaptation(window=_NANO_VISUAL_YARN),
    ),
    Method(
        name="visual_yarn_progressive",
        words="visual YaRN, progressive pooling",
        file="nano/visual_yarn_progressive",
        adaptation=Adaptation(plan=ProgressivePlan(group=4, high_stride=2, low_stride=4), window=_NANO_VISUAL_YARN),
    ),
)

INTP_METHODS = (
    Method(name="none", words="no extension", file="none", adaptation=Adaptation(window=NoWindow(extrapolate=True))),
    Method(
        name="rearranged",
        words="rearranged, no extension",
        file="nano/rearranged",
        adaptation=Adaptation(grouping="rearranged", window=NoWindow(extrapolate=True)),
    ),
    Method(
        name="intp_consecutive",
        words="NTK, consecutive groups",
        file="intp_consecutive",
        adaptation=Adaptation(window=NtkWindow()),
    ),
    Method(
        name="intp",
        words="INTP: NTK, rearranged",
        file="intp",
        adaptation=Adaptation(grouping="rearranged", window=NtkWindow()),
    ),
    Method(
        name="intp_visual",
        words="INTP by the visual window",
        file="nano/intp_visual",
        adaptation=Adaptation(grouping="rearranged", window=NtkWindow(measure="visual")),
    ),
)

NANO_OVERVIEW_SIDE = 28
"""Half of the nano models' 56 pixels: a frame of the overview is 2 x 2 patches, pooled to 1 token of 4."""


def nano_zoom(**settings: Any) -> Adaptation:
    """ZoomVLM on a nano model, whose answers are a few tokens long: frames are chosen after the first of them."""
    chosen: dict[str, Any] = {"draft_tokens": 1, "zoomed_frames": 2, "adjusted_tokens": 0} | settings
    return Adaptation(window=NoWindow(extrapolate=True), zoom=ZoomChoice(overview_side=NANO_OVERVIEW_SIDE, **chosen))


def _shown(**settings: Any) -> Adaptation:
    return Adaptation(window=NoWindow(extrapolate=True), **settings)


ZOOM_METHODS = (
    Method(name="vanilla", words="vanilla", file="none", adaptation=_shown()),
    Method(
        name="slowfast",
        words="SlowFast",
        file="nano/slowfast",
        adaptation=_shown(plan=SlowFastPlan(slow_frames=3, slow_stride=2, fast_stride=4)),
    ),
    Method(name="pooled", words="spatial pooling", file="nano/pooled", adaptation=_shown(plan=UniformPlan(stride=4))),
    Method(name="sampled", words="temporal sampling", file="nano/sampled", adaptation=_shown(frames=4)),
    Method(name="overview", words="overview", file="nano/overview", adaptation=nano_zoom(zoomed_frames=0)),
    Method(name="zoom", words="overview + zoom (k = 2, s = 1)", file="nano/zoom", adaptation=nano_zoom()),
    Method(
        name="adjusted",
        words="overview + zoom + adjustment",
        file="nano/zoom_adjusted",
        adaptation=nano_zoom(adjusted_tokens=2, every_sentences=1),
    ),
)


def _ablated(name: str, words: str, **settings: Any) -> Method:
    return Method(name=name, words=words, file="", adaptation=nano_zoom(**settings))


ZOOM_ABLATIONS = (
    *(_ablated(f"k{count}", f"k = {count}", zoomed_frames=count) for count in (1, 4, 6)),
    *(_ablated(f"s{count}", f"s = {count}", draft_tokens=count) for count in (2, 3)),
    *(_ablated(f"m{count}", f"m = {count}", adjusted_tokens=count, every_sentences=1) for count in (1, 4)),
    *(
        _ablated(f"layers{first}{last}", f"layers {first} to {last}", layers=(first, last))
        for first, last in ((0, 1), (1, 2), (2, 3))
    ),
    _ablated("r1", "r = 1", temporal_ratio=1.0),
    _ablated("behind_question", "chosen frames behind the question (Eq. 9)", zoomed_after="question"),
)
