"""Prompts of the backbones: their checkpoint's chat template, and the visual tokens of an adaptation's plans."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import GenerationConfig

from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.checkpoint_template import CheckpointTemplate
from longvid_train.data.conversation import ConversationOptions, MediumLayout
from longvid_train.generate.compression import CacheCompression, read_compression
from longvid_train.generate.prompting import Prompting
from longvid_train.models.backbones.load import backbone_skeleton, read_config
from longvid_train.models.backbones.planned import PLANNED, PlannedProcessor
from longvid_train.models.backbones.processing import BackboneProcessor
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.tokens.plan import TokenPlan
from longvid_train.types import ALL_PATCHES


class BackbonePrompting(Prompting):
    """See `Prompting`. A video is shown once, with its first question, as these checkpoints were trained.

    Args:
        processor: the checkpoint's.
        config: transformers' configuration of it.
        adaptation: see `Prompting`.
        further_ends: see ``AnswerDecoder``.
        compression: of the KV cache, where the adaptation asks for one.

    Raises:
        UserError: the adaptation is for other models.
    """

    def __init__(
        self,
        processor: BackboneProcessor,
        config: Any,
        adaptation: Adaptation,
        *,
        further_ends: tuple[int, ...] = (),
        compression: CacheCompression | None = None,
    ) -> None:
        self.planned = self._planned(processor, config, adaptation)
        self.config = config
        super().__init__(
            self.planned,
            CheckpointTemplate(processor),
            ConversationOptions(
                media_per_turn="as_written", image_content_grid=ALL_PATCHES, video_content_grid=PLANNED
            ),
            adaptation,
            processor.facts.trained,
            further_ends=further_ends,
            compression=compression,
        )

    @classmethod
    def from_source(
        cls,
        source: str | Path,
        *,
        adaptation: Adaptation | None = None,
        adapter: Path | None = None,
        prompt: str | None = None,
    ) -> "BackbonePrompting":
        """Read a checkpoint's configuration and processor, not its weights.

        Args:
            source: a folder, or a hub id (``str``).
            adaptation: default: the model as it is.
            adapter: folder of an adapter that will be in the model; a cache's quantizer must be for both.
            prompt: instead of the chat template; see `BackboneProcessor`.

        Raises:
            UserError: no such checkpoint, another architecture, or a file is missing; or as the class.
        """
        kind, config = read_config(source)
        processor = BackboneProcessor.load(source, kind.facts_of(config), prompt=prompt)
        chosen = adaptation or Adaptation()
        compression = read_compression(chosen, source, config, adapter=adapter)
        return cls(processor, config, chosen, further_ends=_ends(source), compression=compression)

    def _planned(self, processor: BackboneProcessor, config: Any, adaptation: Adaptation) -> PlannedProcessor:
        return PlannedProcessor(processor, adaptation)

    @property
    def facts(self) -> BackboneFacts:
        """Of the checkpoint."""
        return self.planned.facts

    @property
    def joint_frames(self) -> int:
        """Frames the tower sees together."""
        return self.facts.grid.joint_frames

    @property
    def trained_frames(self) -> int | None:
        """Frames of the visual window at the trained stride."""
        grid = self.facts.grid
        return None if self.trained.visual is None else self.trained.visual // grid.frame_tokens(grid.stride)

    def plan(self, layout: MediumLayout) -> TokenPlan:
        """The plan of any medium: an image is one frame with all its patches, where images are shown at all."""
        return self.planned.plan(ALL_PATCHES if layout.type == "image" else PLANNED, layout.frame_count)

    def skeleton(self) -> nn.Module:
        """See `Prompting.skeleton`."""
        model: nn.Module = backbone_skeleton(self.config).model
        return model


def _ends(source: str | Path) -> tuple[int, ...]:
    """End tokens of the generation configuration, where the checkpoint has one."""
    try:
        config = GenerationConfig.from_pretrained(source, local_files_only=Path(source).is_dir())
    except OSError:
        return ()
    ends = config.eos_token_id
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)
