"""What the data room needs of a model's processor; every backbone's processor fits this protocol."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray


class MultimodalProcessor(Protocol):
    """A tokenizer, a frame preprocessor and the number of visual tokens a frame takes."""

    @property
    def tokenizer(self) -> Any:
        """The language model's ``PreTrainedTokenizerFast``."""

    @property
    def visual_token_id(self) -> int:
        """The id that stands for one visual token in ``input_ids``."""

    @property
    def visual_grid(self) -> int:
        """Patches along one side of a frame."""

    @property
    def frame_settings(self) -> dict[str, Any]:
        """What decides the output of ``preprocess_frames``, as JSON values."""

    @property
    def reads_patches(self) -> bool:
        """Whether a frame's visual tokens need all its patches (a context token does)."""

    def preprocess_frames(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """``(N, height, width, 3)`` uint8 RGB to ``(N, 3, h, w)`` float32, as the tower expects it."""

    def encode_prompts(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """``R`` prompts to the text decoder's ids and mask, both ``(R, Lp)`` int64, padded on the right."""

    def frame_tokens(self, content_grid: int, frames: int) -> tuple[int, ...]:
        """Visual tokens of each frame of a showing of ``frames`` frames, in reading order."""


def joined_prompts(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Distinct prompts in order of first use, and for each given prompt the row it became."""
    row_of: dict[str, int] = {}
    rows = [row_of.setdefault(prompt, len(row_of)) for prompt in prompts]
    return list(row_of), rows
