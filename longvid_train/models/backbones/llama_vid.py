"""LLaMA-VID (arXiv:2311.17043) behind the protocol: a context token and ``n x n`` content tokens a frame.

The context token is made for a question, so a loaded `LlamaVid` encodes frames for all questions and shows them for
one: `LlamaVid.asked`. In a plan the context token stands where other towers have a class token, in front of the cells;
at the stride of the whole grid a frame has 2 tokens. Content tokens are means of square blocks, so a plan's cells must
be as many down as across. How many visual tokens it was trained on is not stated with its checkpoints: a window that
measures them needs ``trained_tokens``.

``F`` frames, ``P`` patches, ``C`` tower width, ``H`` language-model width, ``Lp`` tokens of a prompt.
"""

from typing import Any, ClassVar

import torch

from longvid_train.errors import UserError
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.llama_vid.head import pool_patches
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration
from longvid_train.rope.scale import TrainedWindows
from longvid_train.tokens.grid import FrameGrid
from longvid_train.types import ALL_PATCHES

VIDEO_CONTENT_GRID = 1
"""The paper's for videos: 2 tokens a frame."""


class LlamaVid:
    """This project's LLaMA-VID.

    Args:
        model: in eval mode.
        content_grid: content tokens of a video's frame in training: ``n`` for ``n x n``, or ``ALL_PATCHES``.
        prompt: ids and mask, both ``(1, Lp)`` int64, from the processor's ``encode_prompts``; see `asked`.

    Raises:
        UserError: as `facts_of`.
    """

    model_class: ClassVar[Any] = LlamaVidForConditionalGeneration

    def __init__(
        self,
        model: Any,
        *,
        content_grid: int = VIDEO_CONTENT_GRID,
        prompt: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self.model = model
        self.facts = self.facts_of(model.config, content_grid)
        self._content_grid = content_grid
        self._prompt = prompt

    @staticmethod
    def facts_of(config: Any, content_grid: int = VIDEO_CONTENT_GRID) -> BackboneFacts:
        """What the configuration says, with the content grid that the checkpoint's processor records.

        Raises:
            UserError: a model without content tokens, whose frames have no cells, or a grid that does not fit.
        """
        if not config.use_content:
            raise UserError(
                "this LLaMA-VID has context tokens only (use_content is false): its frames have no cells for a token "
                "plan; use a checkpoint with content tokens"
            )
        side = config.visual_grid
        config.tokens_per_frame(content_grid)
        stride = 1 if content_grid == ALL_PATCHES else side // content_grid
        grid = FrameGrid(rows=side, columns=side, stride=stride, class_tokens=int(config.use_context))
        return BackboneFacts(
            model_type=config.model_type,
            grid=grid,
            trained=TrainedWindows(visual=None, language=int(config.text_config.max_position_embeddings)),
            image_side=config.image_size,
            medium="video",
            placeholder_id=config.visual_token_id,
            prompt=None,
        )

    @staticmethod
    def content_grid_of(rows: int, columns: int, grid: FrameGrid) -> int:
        """The content grid that makes these cells: ``n``, or ``ALL_PATCHES``.

        Raises:
            UserError: cells that are not as many down as across.
        """
        if rows != columns:
            raise UserError(
                f"{rows} x {columns} cells asked for, but LLaMA-VID's content tokens are square blocks; "
                "use one stride for rows and columns"
            )
        return ALL_PATCHES if rows == grid.rows else rows

    def asked(self, prompt_input_ids: torch.Tensor, prompt_attention_mask: torch.Tensor) -> "LlamaVid":
        """The same model whose context tokens are those of one question.

        Args:
            prompt_input_ids: ``(1, Lp)`` int64.
            prompt_attention_mask: ``(1, Lp)`` int64.
        """
        device = self.model.device
        prompt = prompt_input_ids.to(device), prompt_attention_mask.to(device)
        return LlamaVid(self.model, content_grid=self._content_grid, prompt=prompt)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``(F, 3, side, side)`` pixels -> ``(F, 1 + P, C)`` tower features, CLS first; see `Backbone.encode`."""
        features: torch.Tensor = self.model.encode_frames(pixel_values.to(self.model.device, self.model.dtype))
        return features

    def frame_tokens(self, features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """``(F, 1 + P, C)`` -> ``(F, context + rows * columns, H)``.

        Raises:
            UserError: cells that are not as many down as across, or no question (`asked`) where there is a context
                token.
        """
        cells = pool_patches(features[:, 1:], self.content_grid_of(rows, columns, self.facts.grid))
        content: torch.Tensor = self.model.content_projector(cells)
        if not self.facts.grid.class_tokens:
            return content
        return torch.cat([self._context(features)[:, None], content], dim=1)

    def end_tokens(self) -> torch.Tensor:
        """``(0, H)``: nothing stands after the video."""
        embedding = self.model.get_input_embeddings().weight
        return embedding.new_empty(0, embedding.shape[1])

    def _context(self, features: torch.Tensor) -> torch.Tensor:
        """``(F, H)``."""
        if self._prompt is None:
            raise UserError(
                "LLaMA-VID's context tokens are made for a question; give it first: backbone.asked(ids, mask)"
            )
        ids, mask = (part.expand(len(features), -1) for part in self._prompt)
        queries, query_mask = self.model.text_decoder(features, ids, mask)
        context: torch.Tensor = self.model.context_attention(queries, query_mask, features[:, 1:])
        return context
