"""Prompts of LLaMA-VID, with or without a token plan."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.conversation import ConversationOptions, EncodedSample, MediumLayout, shown_media
from longvid_train.data.manifest import Turn
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import Template, template_by_name
from longvid_train.generate.compression import CacheCompression, read_compression
from longvid_train.generate.prompting import Prompting, rope_words
from longvid_train.models.adapter import Adapter
from longvid_train.models.backbones.llama_vid import LlamaVid
from longvid_train.models.backbones.planned import PLANNED, tokens_by_frame
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.loading import read_model_type
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration
from longvid_train.models.llama_vid.processing import LlamaVidProcessor
from longvid_train.rope.scale import TrainedWindows
from longvid_train.tokens.grid import FrameGrid
from longvid_train.tokens.plan import TokenPlan


class LlamaVidPrompting(Prompting):
    """See `Prompting`. Without a plan of its own an adaptation leaves a video's tokens as they were in training.

    Args:
        processor: the model's.
        config: the model's, with its adapter's window.
        template: the one the model was trained with.
        options: content grids and media per turn, as in training.
        adaptation: see `Prompting`.
        compression: see `Prompting`.

    Raises:
        UserError: the adaptation is for other models, or its plan needs content tokens and the model has none.
    """

    def __init__(
        self,
        processor: LlamaVidProcessor,
        config: Any,
        template: Template,
        options: ConversationOptions,
        adaptation: Adaptation,
        *,
        compression: CacheCompression | None = None,
    ) -> None:
        adaptation.check_backbone(config.model_type)
        text_config = config.text_config
        self.config = config
        self._grid: FrameGrid | None = None
        shown_by: MultimodalProcessor = processor
        if adaptation.plan != Adaptation().plan or adaptation.grouping != Adaptation().grouping:
            self._grid = LlamaVid.facts_of(config, options.video_content_grid).grid
            shown_by = _PlannedVideos(processor, adaptation, self._grid)
            options = replace(options, video_content_grid=PLANNED)
        super().__init__(
            shown_by,
            template,
            options,
            adaptation,
            TrainedWindows(visual=None, language=int(text_config.max_position_embeddings)),
            rope=rope_words(text_config.rope_parameters),
            compression=compression,
        )

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        adapter: Adapter | None = None,
        adaptation: Adaptation | None = None,
        template: Template | None = None,
        options: ConversationOptions | None = None,
    ) -> "LlamaVidPrompting":
        """Read a LLaMA-VID folder's configuration and processor, not its weights.

        Args:
            folder: the checkpoint.
            adapter: trained on the checkpoint; its processor and window are used.
            adaptation: default: the model as it is.
            template: default: the one the checkpoint was trained with.
            options: default: the content grids it was trained with.

        Raises:
            UserError: no such folder, another architecture, or a file is missing; or as the class.
        """
        read_model_type(Path(folder), LlamaVidConfig.model_type)
        config = LlamaVidConfig.from_pretrained(folder, local_files_only=True)
        processor = LlamaVidProcessor.from_pretrained(folder if adapter is None else adapter.folder)
        settings = processor.settings
        trained_options = ConversationOptions(
            image_content_grid=settings.image_content_grid, video_content_grid=settings.video_content_grid
        )
        if adapter is not None:
            config = adapter.adapt_config(config)
        chosen = adaptation or Adaptation()
        return cls(
            processor,
            config,
            template or template_by_name(settings.template),
            options or trained_options,
            chosen,
            compression=read_compression(chosen, folder, config, adapter=None if adapter is None else adapter.folder),
        )

    @property
    def joint_frames(self) -> int:
        """1: the tower encodes each frame alone."""
        return 1

    @property
    def trained_frames(self) -> int | None:
        """Not stated: training videos had 1 frame a second."""
        return None

    def encode(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout]) -> EncodedSample:
        """As `Prompting.encode`; a planned showing becomes one span for each run of frames with the same cells."""
        sample = super().encode(turns, layouts)
        rows: list[tuple[int, int, int, int]] = []
        for number, (first, frames, prompt), grid in zip(
            shown_media(turns, self.options), sample.spans.tolist(), sample.content_grids.tolist(), strict=True
        ):
            plan = self.plan(layouts[number])
            runs = [(0, frames, grid)] if plan is None else _runs(plan)
            rows += [(first + start, count, prompt, cells) for start, count, cells in runs]
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
        return replace(sample, spans=table[:, :3], content_grids=table[:, 3])

    def plan(self, layout: MediumLayout) -> TokenPlan | None:
        """The plan of a video; an image, and any medium of an adaptation without a plan, is shown as in training."""
        if self._grid is None or layout.type == "image":
            return None
        plan = self.adaptation.plan_frames(layout.frame_count, self._grid)
        _runs(plan)  # raises where the head cannot make the cells
        return plan

    def skeleton(self) -> nn.Module:
        """See `Prompting.skeleton`."""
        with torch.device("meta"):
            return LlamaVidForConditionalGeneration(self.config)


class _PlannedVideos(LlamaVidProcessor):
    """The model's processor, with an adaptation's plan for the content grid `PLANNED`."""

    def __init__(self, processor: LlamaVidProcessor, adaptation: Adaptation, grid: FrameGrid) -> None:
        super().__init__(processor.tokenizer, processor.prompt_tokenizer, processor.settings)
        self._adaptation = adaptation
        self._grid = grid

    def frame_tokens(self, content_grid: int, frames: int) -> tuple[int, ...]:
        """Visual tokens in front of what follows each frame."""
        if content_grid != PLANNED:
            return super().frame_tokens(content_grid, frames)
        return tokens_by_frame(self._adaptation.plan_frames(frames, self._grid))


def _runs(plan: TokenPlan) -> list[tuple[int, int, int]]:
    """First frame, length and content grid of each run of frames with the same cells, in reading order.

    Raises:
        UserError: cells that LLaMA-VID's head cannot make.
    """
    runs: list[tuple[int, int, int]] = []
    for pathway in plan.pathways:
        for place, shown in enumerate(pathway.frames):
            grid = LlamaVid.content_grid_of(shown.rows, shown.columns, plan.grid)
            first, count, last_grid = runs[-1] if place else (0, 0, None)
            if last_grid == grid and first + count == shown.frame:
                runs[-1] = first, count + 1, grid
            else:
                runs.append((shown.frame, 1, grid))
    return runs
