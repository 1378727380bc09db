"""One question about one video, planned for any model: what ``longvid cost`` prints and plots."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from longvid_train.adaptation.settings import Adaptation
from longvid_train.cost.capacity import most_frames
from longvid_train.cost.decoder import DecoderShape
from longvid_train.cost.hardware import Hardware
from longvid_train.cost.inference import InferenceCost, Request, VisionCost, inference_cost
from longvid_train.cost.kv_storage import KvStorage
from longvid_train.errors import UserError, nearest
from longvid_train.models.backbones.costs import BackboneShapes, backbone_shapes
from longvid_train.models.backbones.llama_vid import LlamaVid
from longvid_train.models.backbones.load import read_config
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.published import PUBLISHED
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.sizes import Size, published_config
from longvid_train.models.prefill import PREFILL_CHUNK
from longvid_train.rope.scale import TokenCounts, extent_of
from longvid_train.tokens.plan import TokenPlan
from longvid_train.training.planned import PlannedLlamaVid

LLAMA_VID: dict[str, Size] = {"llama-vid-7b": "7b", "llama-vid-13b": "13b"}
MOST_FRAMES = 65536
"""Where the search for frames that fit ends: 18 hours at one frame a second."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, apart from the video.

    Attributes:
        text_tokens: of the prompt around the video.
        new_tokens: of the answer.
        rows: questions answered at once.
        prefill_chunk: tokens of the prompt that pass the decoder at once.
    """

    text_tokens: int = 64
    new_tokens: int = 256
    rows: int = 1
    prefill_chunk: int = PREFILL_CHUNK

    def __post_init__(self) -> None:
        """Refuse numbers below one."""
        for name in ("text_tokens", "new_tokens", "rows", "prefill_chunk"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")


class PlannedModel(Protocol):
    """A model without weights, as the planner sees it."""

    @property
    def decoder(self) -> DecoderShape:
        """Its language model."""
        ...

    @property
    def frame_step(self) -> int:
        """Frames its tower takes together."""
        ...

    def shown(self, frames: int) -> TokenPlan:
        """The token plan of ``frames`` frames.

        Raises:
            UserError: the adaptation cannot show them.
        """
        ...

    def vision(self, plan: TokenPlan, text_tokens: int, value_bytes: int) -> VisionCost:
        """What making a plan's tokens costs."""
        ...

    def window(self, plan: TokenPlan, sequence_tokens: int) -> tuple[float, int]:
        """The scale an input is read with, and the sequence the model then takes.

        Raises:
            UserError: the adaptation's window does not hold the input.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Adapted:
    """The part of a planned model that any architecture shares: its facts under an adaptation."""

    facts: BackboneFacts
    adaptation: Adaptation

    def __post_init__(self) -> None:
        self.adaptation.check_backbone(self.facts.model_type)

    @property
    def frame_step(self) -> int:
        """See `PlannedModel`."""
        return self.facts.grid.joint_frames

    def shown(self, frames: int) -> TokenPlan:
        """See `PlannedModel`."""
        return self.adaptation.plan_frames(frames, self.facts.grid)

    def window(self, plan: TokenPlan, sequence_tokens: int) -> tuple[float, int]:
        """See `PlannedModel`; without an extension the plan goes beyond the window, and says so."""
        if not self.adaptation.window.extends:
            return 1.0, self.facts.trained.language
        counts = TokenCounts(visual=plan.frame_tokens, total=sequence_tokens)
        extent = extent_of(self.adaptation.window, counts, self.facts.trained)
        return extent.scale, extent.language_tokens


@dataclass(frozen=True, kw_only=True)
class PlannedBackbone(_Adapted):
    """One of transformers' video models under an adaptation."""

    shapes: BackboneShapes

    @property
    def decoder(self) -> DecoderShape:
        """See `PlannedModel`."""
        return self.shapes.decoder

    def vision(self, plan: TokenPlan, text_tokens: int, value_bytes: int) -> VisionCost:
        """See `PlannedModel`."""
        return self.shapes.vision_cost(plan, value_bytes=value_bytes)


@dataclass(frozen=True, kw_only=True)
class PlannedTwoToken(_Adapted):
    """A LLaMA-VID under an adaptation."""

    planned: PlannedLlamaVid

    @property
    def decoder(self) -> DecoderShape:
        """See `PlannedModel`."""
        return self.planned.decoder

    def vision(self, plan: TokenPlan, text_tokens: int, value_bytes: int) -> VisionCost:
        """See `PlannedModel`; the text, as far as a prompt may be long, guides the context tokens."""
        frames = plan.frame_count
        cells = plan.frame_tokens - frames * plan.grid.class_tokens
        return self.planned.vision_cost(frames, text_tokens, content_cells=cells, value_bytes=value_bytes)


def planned_model(source: str, adaptation: Adaptation | None) -> PlannedBackbone | PlannedTwoToken:
    """The model that ``--model`` names: a published one by its short name, or a checkpoint's configuration.

    Raises:
        UserError: no such model, or an adaptation that is not for it.
    """
    chosen = adaptation or Adaptation()
    if source in PUBLISHED:
        return _backbone(PUBLISHED[source](), chosen)
    if source in LLAMA_VID:
        return _two_token(published_config(LLAMA_VID[source]), chosen)
    if not Path(source).is_dir() and "/" not in source:
        known = [*PUBLISHED, *LLAMA_VID]
        hint = nearest(source, known) or "."
        raise UserError(f"model '{source}' is unknown{hint} Give a folder, a hub id, or one of {', '.join(known)}")
    kind, config = read_config(source)
    return _two_token(config, chosen) if kind is LlamaVid else _backbone(config, chosen)


def _backbone(config: Any, adaptation: Adaptation) -> PlannedBackbone:
    shapes = backbone_shapes(config)
    return PlannedBackbone(facts=shapes.facts, adaptation=adaptation, shapes=shapes)


def _two_token(config: LlamaVidConfig, adaptation: Adaptation) -> PlannedTwoToken:
    facts = LlamaVid.facts_of(config)
    return PlannedTwoToken(facts=facts, adaptation=adaptation, planned=PlannedLlamaVid(config))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One line of the planner: a number of frames and what it needs.

    Attributes:
        frames: of the video.
        visual_tokens: that the language model reads.
        scale: that the rotary window is extended by.
        window_tokens: that the model takes under this scale.
        fits_window: whether prompt and answer are within it.
        cost: operations, bytes and time.
    """

    frames: int
    visual_tokens: int
    scale: float
    window_tokens: int
    fits_window: bool
    cost: InferenceCost

    def record(self) -> dict[str, Any]:
        """One flat JSON object."""
        values = asdict(self)
        return values | values.pop("cost")


@dataclass(frozen=True, kw_only=True)
class Planner:
    """A model, a question and a device.

    Attributes:
        model: without weights.
        question: apart from the video.
        storage: how the cache keeps its numbers.
        hardware: where it runs.
        value_bytes: of a parameter and an activation.
    """

    model: PlannedModel
    question: Question
    storage: KvStorage
    hardware: Hardware
    value_bytes: int = 2

    def plan(self, frames: int) -> Plan:
        """What ``frames`` frames need.

        Raises:
            UserError: the adaptation cannot show or hold them.
        """
        if frames < 1:
            raise UserError(f"frames is {frames}; it must be at least 1")
        shown = self.model.shown(frames)
        vision = self.model.vision(shown, self.question.text_tokens, self.value_bytes)
        request = Request(
            visual_tokens=shown.visual_tokens,
            text_tokens=self.question.text_tokens,
            new_tokens=self.question.new_tokens,
            rows=self.question.rows,
            prefill_chunk=self.question.prefill_chunk,
        )
        scale, window = self.model.window(shown, request.sequence_tokens)
        cost = inference_cost(
            self.model.decoder, vision, request, self.storage, self.hardware, weight_value_bytes=self.value_bytes
        )
        return Plan(
            frames=frames,
            visual_tokens=shown.visual_tokens,
            scale=scale,
            window_tokens=window,
            fits_window=request.sequence_tokens <= window,
            cost=cost,
        )

    def most_frames(self) -> int:
        """The largest number of frames whose peak fits the device; the window is not asked."""
        return most_frames(
            lambda frames: self.plan(frames).cost.total_bytes,
            self.hardware.memory_bytes,
            limit=MOST_FRAMES,
            step=self.model.frame_step,
        )

    def curve(self, counts: Iterable[int]) -> list[Plan]:
        """Plans of several numbers of frames."""
        return [self.plan(count) for count in counts]
