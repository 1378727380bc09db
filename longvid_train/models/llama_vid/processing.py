"""LLaMA-VID's processor: two tokenizers and the picture settings, saved beside the model.

``N`` frames, ``R`` prompts, ``Lp`` tokens of the longest prompt.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from longvid_train.errors import UserError, nearest
from longvid_train.files import write_json
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.frames import CLIP_MEAN, CLIP_STD, normalise, resize_and_crop
from longvid_train.tokens.two_token import tokens_per_frame
from longvid_train.types import ALL_PATCHES

PROCESSOR_FILE = "llama_vid_processor.json"
TOKENIZER_FOLDER = "tokenizer"
PROMPT_TOKENIZER_FOLDER = "prompt_tokenizer"


@dataclass(frozen=True, kw_only=True)
class ProcessorSettings:
    """Numbers the processor needs of the model.

    Attributes:
        image_size: side in pixels of the square the tower takes.
        patch_size: side in pixels of a patch.
        visual_token_id: placeholder of one visual token in ``input_ids``.
        use_context: whether a frame has a context token.
        use_content: whether a frame has content tokens.
        max_prompt_tokens: longest prompt the text decoder is given, special tokens included.
        image_content_grid: content tokens of an image the checkpoint was trained with (``ALL_PATCHES`` or ``n``).
        video_content_grid: likewise of a video's frame.
        template: name of the chat template it was trained with.
        image_mean: per RGB channel, of pixels in [0, 1].
        image_std: likewise.
    """

    image_size: int
    patch_size: int
    visual_token_id: int
    use_context: bool = True
    use_content: bool = True
    max_prompt_tokens: int = 256
    image_content_grid: int = ALL_PATCHES
    video_content_grid: int = 1
    template: str = "vicuna_v1"
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD


class LlamaVidProcessor:
    """Frames to pixels, prompts to the text decoder's ids, and how many visual tokens a frame takes.

    Args:
        tokenizer: the language model's.
        prompt_tokenizer: the text decoder's (bert-base-uncased's in the public models); ``None`` for a model with
            content tokens only.
        settings: see ``ProcessorSettings``.

    Raises:
        UserError: the prompt tokenizer is missing though there is a context token, or has no padding token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_tokenizer: PreTrainedTokenizerBase | None,
        settings: ProcessorSettings,
    ) -> None:
        if settings.use_context and prompt_tokenizer is None:
            raise UserError("use_context is true but there is no prompt_tokenizer; give the text decoder's tokenizer")
        if prompt_tokenizer is not None:
            if prompt_tokenizer.pad_token_id is None:
                raise UserError("prompt_tokenizer has no padding token; set its pad_token")
            prompt_tokenizer.truncation_side = "left"
            prompt_tokenizer.padding_side = "right"
        self.tokenizer = tokenizer
        self.prompt_tokenizer = prompt_tokenizer
        self.settings = settings

    @classmethod
    def for_model(
        cls,
        config: LlamaVidConfig,
        tokenizer: PreTrainedTokenizerBase,
        prompt_tokenizer: PreTrainedTokenizerBase | None,
    ) -> "LlamaVidProcessor":
        """Make the processor that fits a model's configuration."""
        settings = ProcessorSettings(
            image_size=config.image_size,
            patch_size=config.vision_config.patch_size,
            visual_token_id=config.visual_token_id,
            use_context=bool(config.use_context),
            use_content=config.use_content,
            max_prompt_tokens=config.max_prompt_tokens,
        )
        return cls(tokenizer, prompt_tokenizer, settings)

    @property
    def visual_token_id(self) -> int:
        """Placeholder of one visual token in ``input_ids``."""
        return self.settings.visual_token_id

    @property
    def visual_grid(self) -> int:
        """Patches along one side of a frame."""
        return self.settings.image_size // self.settings.patch_size

    @property
    def frame_settings(self) -> dict[str, Any]:
        """What decides the output of ``preprocess_frames``, as JSON values."""
        return {
            "image_size": self.settings.image_size,
            "image_mean": list(self.settings.image_mean),
            "image_std": list(self.settings.image_std),
            "resize": "bicubic shortest edge, centre crop",
        }

    @property
    def reads_patches(self) -> bool:
        """Whether a frame's visual tokens need all its patches: the context token attends to them."""
        return self.settings.use_context

    def tokens_per_frame(self, content_grid: int) -> int:
        """Visual tokens of one frame, context token included.

        Raises:
            UserError: ``content_grid`` does not divide the patches.
        """
        settings = self.settings
        return tokens_per_frame(
            content_grid, self.visual_grid, context=settings.use_context, content=settings.use_content
        )

    def frame_tokens(self, content_grid: int, frames: int) -> tuple[int, ...]:
        """``tokens_per_frame`` of each of ``frames`` frames."""
        return (self.tokens_per_frame(content_grid),) * frames

    def trained_with(self, *, template: str, image_content_grid: int, video_content_grid: int) -> "LlamaVidProcessor":
        """The same processor, recording how the checkpoint beside it was trained, so that inference does likewise."""
        settings = replace(
            self.settings,
            template=template,
            image_content_grid=image_content_grid,
            video_content_grid=video_content_grid,
        )
        return LlamaVidProcessor(self.tokenizer, self.prompt_tokenizer, settings)

    def preprocess_frames(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """``(N, height, width, 3)`` uint8 RGB to ``(N, 3, image_size, image_size)`` float32.

        Raises:
            UserError: frames of another shape or type.
        """
        pixels = resize_and_crop(frames, self.settings.image_size)
        return normalise(pixels, self.settings.image_mean, self.settings.image_std)

    def encode_prompts(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokenise ``R`` prompts for the text decoder.

        A prompt longer than ``max_prompt_tokens`` loses its beginning.

        Returns:
            ids and mask, both ``(R, Lp)`` int64, padded on the right, ``Lp >= 1``.
        """
        if self.prompt_tokenizer is None or not prompts:
            empty = torch.zeros(len(prompts), 1, dtype=torch.long)
            return empty, empty.clone()
        encoded = self.prompt_tokenizer(
            prompts, truncation=True, max_length=self.settings.max_prompt_tokens, return_attention_mask=False
        )["input_ids"]
        width = max(1, *(len(ids) for ids in encoded))
        ids = torch.full((len(prompts), width), self.prompt_tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : len(tokens)] = 1
        return ids, mask

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``llama_vid_processor.json``, ``tokenizer/`` and ``prompt_tokenizer/`` into ``folder``."""
        folder = Path(folder)
        write_json(folder / PROCESSOR_FILE, asdict(self.settings))
        self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
        if self.prompt_tokenizer is not None:
            self.prompt_tokenizer.save_pretrained(folder / PROMPT_TOKENIZER_FOLDER)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "LlamaVidProcessor":
        """Read what ``save_pretrained`` wrote; never downloads.

        Raises:
            UserError: a file is missing or holds something else.
        """
        folder = Path(folder)
        settings = _read_settings(folder / PROCESSOR_FILE)
        prompt_tokenizer = _read_tokenizer(folder / PROMPT_TOKENIZER_FOLDER) if settings.use_context else None
        return cls(_read_tokenizer(folder / TOKENIZER_FOLDER), prompt_tokenizer, settings)


def _read_settings(path: Path) -> ProcessorSettings:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist; a LLaMA-VID folder has one beside its weights (LlamaVidProcessor.save_pretrained)"
        )
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); write it with LlamaVidProcessor.save_pretrained"
        ) from error
    known = [field.name for field in fields(ProcessorSettings)]
    for name in values:
        if name not in known:
            raise UserError(f"{path}: unknown setting '{name}'{nearest(name, known)}")
    for name in ("image_size", "patch_size", "visual_token_id"):
        if name not in values:
            raise UserError(f"{path}: setting '{name}' is missing")
    for name in ("image_mean", "image_std"):
        if name in values:
            values[name] = tuple(values[name])
    return ProcessorSettings(**values)


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder} holds no tokenizer (tokenizer_config.json is missing); save the processor again")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
