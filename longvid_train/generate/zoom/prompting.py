"""Prompts of a backbone under a zoom: the overview's tokens are in them, the frames in full are counted to them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longvid_train.adaptation.settings import Adaptation
from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.data.conversation import MediumLayout, shown_media
from longvid_train.data.manifest import Turn
from longvid_train.errors import UserError
from longvid_train.generate.backbone_prompting import BackbonePrompting
from longvid_train.generate.prompting import PromptCounts
from longvid_train.models.backbones.planned import PLANNED, PlannedProcessor
from longvid_train.models.backbones.processing import BackboneProcessor
from longvid_train.models.backbones.resized import resized_facts
from longvid_train.tokens.overview import ZoomPlan, overview_frames, plan_zoom
from longvid_train.tokens.plan import TokenPlan
from longvid_train.tokens.uniform import UniformPlan


class OverviewProcessor(PlannedProcessor):
    """`PlannedProcessor` of a video's overview.

    Args:
        processor: of the checkpoint.
        config: transformers' configuration of it.
        adaptation: with a zoom.

    Raises:
        UserError: the adaptation is for other backbones, or this one's pictures cannot be made smaller that way.
    """

    def __init__(self, processor: BackboneProcessor, config: Any, adaptation: Adaptation) -> None:
        super().__init__(processor, adaptation)
        self.zoom = _zoom_of(adaptation)
        self.small_facts = resized_facts(config, self.zoom.side(processor.facts.image_side))
        self.small_pictures = processor.resized(self.small_facts.image_side)

    def zoom_plan(self, frames: int) -> ZoomPlan:
        """The plan of a video of which ``frames`` frames are taken.

        Raises:
            UserError: too few frames, or a number or a resolution that the backbone cannot take.
        """
        policy = self.adaptation.plan
        assert isinstance(policy, UniformPlan), "an adaptation that zooms has a uniform plan"
        return plan_zoom(
            frames,
            self.facts.grid,
            self.small_facts.grid,
            stride=policy.stride,
            ratio=self.zoom.temporal_ratio,
            counting=self.zoom.counting,
            zoomed_frames=self.zoom.zoomed_frames,
            grouping=self.adaptation.grouping,
        )

    def plan(self, content_grid: int, frames: int) -> TokenPlan:
        """Of the overview of a video with ``frames`` frames; raises as `zoom_plan`."""
        return self.zoom_plan(frames).overview if content_grid == PLANNED else super().plan(content_grid, frames)

    def frame_tokens(self, content_grid: int, frames: int) -> tuple[int, ...]:
        """Tokens in front of what follows each of the frames taken; most of those left out have none."""
        if content_grid != PLANNED:
            return super().frame_tokens(content_grid, frames)
        plan, counts = self.zoom_plan(frames), [0] * frames
        each = plan.overview.frame_tokens // len(plan.shown)
        for frame in plan.shown:
            counts[frame] = each
        counts[-1] += plan.overview.grid.end_tokens
        return tuple(counts)

    def window_tokens(self, content_grid: int, frames: int) -> int:
        """Visual tokens that are measured against the visual window, the frames in full included."""
        return self.zoom_plan(frames).frame_tokens


class ZoomPrompting(BackbonePrompting):
    """See `Prompting`. A conversation is about one video.

    Args:
        processor: as `BackbonePrompting`.
        config: as `BackbonePrompting`.
        adaptation: with a zoom.
        **settings: as `BackbonePrompting`.

    Raises:
        UserError: as `OverviewProcessor`, or the band of layers lies outside the decoder.
    """

    planned: OverviewProcessor

    def __init__(self, processor: BackboneProcessor, config: Any, adaptation: Adaptation, **settings: Any) -> None:
        super().__init__(processor, config, adaptation, **settings)
        self.zoom = _zoom_of(adaptation)
        depth = int(config.get_text_config(decoder=True).num_hidden_layers)
        self.layers = self.zoom.band(processor.facts.model_type, depth)

    def _planned(self, processor: BackboneProcessor, config: Any, adaptation: Adaptation) -> OverviewProcessor:
        return OverviewProcessor(processor, config, adaptation)

    def counts(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout]) -> PromptCounts:
        """See `Prompting.counts`; the frames in full count.

        Raises:
            UserError: as `Prompting.counts`, or not exactly one video is shown.
        """
        shown = shown_media(turns, self.options)
        if len(shown) != 1 or layouts[shown[0]].type != "video":
            what = f"{len(shown)} media are" if len(shown) != 1 else "an image is"
            raise UserError(f"the adaptation zooms into one video, and {what} shown; ask about one, or leave zoom out")
        zoom_tokens = self.planned.zoom_plan(layouts[shown[0]].frame_count).zoom_tokens
        counts = super().counts(turns, layouts)
        return replace(counts, visual=counts.visual + zoom_tokens, frames=counts.frames + zoom_tokens)

    @property
    def least_frames(self) -> int:
        """Frames whose overview has the ``k`` that are shown in full."""
        frames, joint = 0, self.joint_frames
        while True:
            frames += joint
            shown = overview_frames(frames, self.zoom.temporal_ratio, counting=self.zoom.counting, joint_frames=joint)
            if len(shown) >= self.zoom.zoomed_frames:
                return frames

    @property
    def plan_kind(self) -> str:
        """See `Prompting.plan_kind`."""
        return "zoom"

    def plan_lines(self, layout: MediumLayout) -> list[str]:
        """See `Prompting.plan_lines`."""
        plan = self.planned.zoom_plan(layout.frame_count)
        small, full = (UniformPlan(stride=plan.stride).describe(grid) for grid in (plan.overview.grid, plan.grid))
        in_full = f", then {plan.zoomed_frames} of these with {full}" if plan.zoomed_frames else ""
        return [
            f"an overview of {len(plan.shown)} of {plan.frames} frames with {small}{in_full}: "
            f"{plan.visual_tokens} visual tokens"
        ]


def _zoom_of(adaptation: Adaptation) -> ZoomChoice:
    assert adaptation.zoom is not None, "read_prompting chooses this class for adaptations that zoom"
    return adaptation.zoom
