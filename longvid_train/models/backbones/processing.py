"""A backbone's own processor: frames to pixels, a question to the checkpoint's prompt.

``N`` frames, ``S`` tokens of the prompt.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoProcessor

from longvid_train.errors import UserError
from longvid_train.models.backbones.protocol import BackboneFacts

PIXEL_CHUNK = 64
"""Frames that transformers' processor works on at once."""


class BackboneProcessor:
    """transformers' processor of a checkpoint, with the number of visual tokens left to the plan.

    Args:
        processor: with ``tokenizer`` and ``video_processor`` (or ``image_processor``, where the medium is an image).
        facts: of the checkpoint.
        prompt: instead of the checkpoint's chat template; holds the medium's placeholder (``<video>`` or ``<image>``)
            once and ``{question}`` once.

    Raises:
        UserError: ``prompt`` does not hold both, or there is neither a chat template nor a prompt.
    """

    def __init__(self, processor: Any, facts: BackboneFacts, *, prompt: str | None = None) -> None:
        self.processor = processor
        self.facts = facts
        self.placeholder: str = processor.tokenizer.convert_ids_to_tokens(facts.placeholder_id)
        self._prompt = prompt if prompt is not None else (None if processor.chat_template else facts.prompt)
        if self._prompt is not None:
            for part in (self.placeholder, "{question}"):
                if self._prompt.count(part) != 1:
                    raise UserError(f"prompt {self._prompt!r} must hold {part} exactly once")
        elif not processor.chat_template:
            raise UserError(
                f"the '{facts.model_type}' checkpoint has no chat template, and its family has several prompts; "
                f"give one, e.g. prompt='USER: {self.placeholder}\\n{{question}} ASSISTANT:'"
            )

    @classmethod
    def load(cls, source: str | Path, facts: BackboneFacts, *, prompt: str | None = None) -> "BackboneProcessor":
        """Read the processor beside a checkpoint (a folder, or a hub id).

        Raises:
            UserError: there is none that transformers can read, or as the class.
        """
        try:
            processor = AutoProcessor.from_pretrained(source, local_files_only=Path(source).is_dir())
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{source}: its processor cannot be read ({reason}); save it beside the model") from error
        return cls(processor, facts, prompt=prompt)

    def pixel_values(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """``(N, H, W, 3)`` uint8 RGB frames -> ``(N, 3, side, side)`` float32, as the checkpoint's processor does."""
        preprocess = self._image_pixels if self.facts.medium == "image" else self._video_pixels
        return _in_chunks(preprocess, frames)

    def prompt_text(self, question: str) -> str:
        """The prompt with one placeholder.

        Raises:
            UserError: the question holds the placeholder itself.
        """
        if self.placeholder in question:
            raise UserError(f"the question holds {self.placeholder}, which stands for the video; leave it out")
        if self._prompt is not None:
            return self._prompt.replace("{question}", question)
        content = [{"type": self.facts.medium}, {"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        text: str = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return text

    def prompt_ids(self, question: str, visual_tokens: int) -> torch.Tensor:
        """``(1, S)`` int64: the prompt with ``visual_tokens`` placeholders in the place of one.

        Raises:
            UserError: the chat template does not show exactly one medium, or as `prompt_text`.
        """
        text = self.prompt_text(question)
        tokenizer = self.processor.tokenizer
        begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids: list[int] = tokenizer(text, add_special_tokens=not begun)["input_ids"]
        if ids.count(self.facts.placeholder_id) != 1:
            raise UserError(
                f"the chat template makes {ids.count(self.facts.placeholder_id)} times {self.placeholder} of one "
                f"{self.facts.medium}; give prompt= with one"
            )
        place = ids.index(self.facts.placeholder_id)
        return torch.tensor([ids[:place] + [self.facts.placeholder_id] * visual_tokens + ids[place + 1 :]])

    def _video_pixels(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        values: torch.Tensor = self.processor.video_processor(
            videos=[frames], do_sample_frames=False, return_tensors="pt"
        )["pixel_values_videos"][0]
        return values

    def _image_pixels(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        images = self.processor.image_processor
        if not hasattr(images, "image_grid_pinpoints"):
            values: torch.Tensor = images(list(frames), return_tensors="pt")["pixel_values"]
            return values
        side = self.facts.image_side  # one view and one tile of the whole frame: only the view is kept
        views: torch.Tensor = images(list(frames), image_grid_pinpoints=[[side, side]], return_tensors="pt")[
            "pixel_values"
        ]
        return views[:, 0]


def _in_chunks(preprocess: Callable[[NDArray[np.uint8]], torch.Tensor], frames: NDArray[np.uint8]) -> torch.Tensor:
    return torch.cat([preprocess(part) for part in np.split(frames, range(PIXEL_CHUNK, len(frames), PIXEL_CHUNK))])
