"""One adaptation: how many frames, how they are shown and encoded, how the window is extended and the KV cache coded.

Training-free methods differ in these settings only; ``ask``, LoRA training and evaluation use the same record, and an
adapter stores it.
"""

import math
from dataclasses import dataclass, field
from typing import get_args

from longvid_train.adaptation.cache import CacheChoice
from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.errors import UserError, nearest
from longvid_train.rope.linear import LinearWindow
from longvid_train.rope.ntk import NtkWindow
from longvid_train.rope.unextended import NoWindow
from longvid_train.rope.visual_yarn import VisualYarnWindow
from longvid_train.rope.yarn import YarnWindow
from longvid_train.tokens.grid import FrameGrid
from longvid_train.tokens.plan import TokenPlan, make_plan, plan_notes
from longvid_train.tokens.progressive import ProgressivePlan
from longvid_train.tokens.rearrangement import Grouping
from longvid_train.tokens.slowfast import SlowFastPlan
from longvid_train.tokens.uniform import UniformPlan

AnyPlan = UniformPlan | ProgressivePlan | SlowFastPlan
AnyWindow = NoWindow | LinearWindow | NtkWindow | YarnWindow | VisualYarnWindow

PLANS: dict[str, type[AnyPlan]] = {plan.kind: plan for plan in get_args(AnyPlan)}
WINDOWS: dict[str, type[AnyWindow]] = {window.kind: window for window in get_args(AnyWindow)}

GROUPINGS: tuple[str, ...] = get_args(Grouping)


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """How a model reads a video; the defaults are the model as it is.

    Attributes:
        backbones: transformers' ``model_type`` of the models this is for; empty for any.
        frames: frames to take, evenly spaced; ``None`` leaves it to the caller.
        fps: take this many frames a second instead, and at most ``frames`` of them.
        plan: how frames are shown.
        grouping: how a tower that sees several frames together gets them; ``"rearranged"`` is INTP's way.
        window: how the rotary window is extended.
        cache: how the KV cache is compressed; ``None`` leaves it in full precision. Training keeps no cache.
        zoom: ZoomVLM's overview, keyframes and token adjustment; ``None`` shows all frames alike. For answers only.
    """

    backbones: tuple[str, ...] = ()
    frames: int | None = None
    fps: float | None = None
    plan: AnyPlan = field(default_factory=UniformPlan)
    grouping: Grouping = "consecutive"
    window: AnyWindow = field(default_factory=NoWindow)
    cache: CacheChoice | None = None
    zoom: ZoomChoice | None = None

    def __post_init__(self) -> None:
        """Refuse what no video can satisfy."""
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frames is {self.frames}; it must be at least 1")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UserError(f"fps is {self.fps}; it must be greater than 0")
        if self.grouping not in GROUPINGS:
            hint = nearest(str(self.grouping), list(GROUPINGS)) or "."
            raise UserError(f"grouping '{self.grouping}' is unknown{hint} Use one of {', '.join(GROUPINGS)}")
        if self.frames is not None and self.frames < self.plan.least_frames:
            raise UserError(
                f"frames is {self.frames}, but the plan '{self.plan.kind}' needs at least {self.plan.least_frames}; "
                "raise frames"
            )
        if self.zoom is not None and not isinstance(self.plan, UniformPlan):
            raise UserError(
                f"the plan '{self.plan.kind}' cannot be zoomed: an overview and its frames in full are a plan of their "
                "own; leave plan out, or give a uniform one for its stride"
            )

    def check_backbone(self, model_type: str) -> None:
        """Refuse a model this adaptation was not written for.

        Raises:
            UserError: naming both.
        """
        if self.backbones and model_type not in self.backbones:
            raise UserError(
                f"the adaptation is for {', '.join(self.backbones)}, the model is '{model_type}'; "
                f"choose another adaptation, or add {model_type} to its backbones"
            )

    def plan_frames(self, frames: int, grid: FrameGrid, *, available: int | None = None) -> TokenPlan:
        """The token plan of ``frames`` frames on a backbone's grid.

        Raises:
            UserError: more frames than ``available``, a count the tower cannot take, or a plan that does not fit; or
                the adaptation zooms, so that which tokens there are is known in answering only.
        """
        if self.zoom is not None:
            raise UserError(
                "the adaptation zooms, which is for answers only (longvid ask and evaluate); leave zoom out here"
            )
        return make_plan(self.plan, frames, grid, grouping=self.grouping, available=available)

    def plan_notes(self, plan: TokenPlan) -> list[str]:
        """Lines for the user about a plan of this adaptation."""
        return plan_notes(plan, self.plan, self.grouping)
