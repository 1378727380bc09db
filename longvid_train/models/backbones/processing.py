"""A checkpoint's own prompt and picture settings: frames to pixels, a question to ids.

transformers' video processors need torchvision; here frames pass its PIL image processor with the checkpoint's video
settings, which is also what the models were trained with.

``N`` frames, ``S`` tokens of the prompt.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor

from longvid_train.errors import UserError
from longvid_train.models.backbones.protocol import BackboneFacts

PIXEL_CHUNK = 64
"""Frames that the image processor works on at once."""

_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


class BackboneProcessor:
    """Prompts and pixels of one checkpoint; the number of visual tokens is left to the plan.

    Args:
        tokenizer: of the checkpoint.
        facts: of the checkpoint.
        pictures: its video settings (image settings where the medium is an image), as transformers names them.
        chat_template: of its processor, if it has one.
        prompt: instead of the chat template; holds the medium's placeholder (``<video>`` or ``<image>``) once and
            ``{question}`` once.

    Raises:
        UserError: ``prompt`` does not hold both, or there is neither a chat template nor a prompt.
    """

    def __init__(
        self,
        tokenizer: Any,
        facts: BackboneFacts,
        pictures: dict[str, Any],
        *,
        chat_template: str | None = None,
        prompt: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.facts = facts
        self.placeholder: str = tokenizer.convert_ids_to_tokens(facts.placeholder_id)
        self._chat_template = chat_template
        self._pictures = CLIPImageProcessorPil(**_whole_frame(pictures, facts.image_side))
        self._prompt = prompt if prompt is not None or chat_template is not None else facts.prompt
        if self._prompt is not None:
            for part in (self.placeholder, "{question}"):
                if self._prompt.count(part) != 1:
                    raise UserError(f"prompt {self._prompt!r} must hold {part} exactly once")
        elif chat_template is None:
            raise UserError(
                f"the '{facts.model_type}' checkpoint has no chat template, and its family has several prompts; "
                f"give one, e.g. prompt='USER: {self.placeholder}\\n{{question}} ASSISTANT:'"
            )

    @classmethod
    def load(cls, source: str | Path, facts: BackboneFacts, *, prompt: str | None = None) -> "BackboneProcessor":
        """Read what stands beside a checkpoint (a folder, or a hub id), in transformers' old and new file layouts.

        Raises:
            UserError: something is missing or cannot be read, or as the class.
        """
        local = {"local_files_only": Path(source).is_dir()}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **local)
            whole, _ = ProcessorMixin.get_processor_dict(source, **local)
            if facts.medium == "image":
                pictures, _ = ImageProcessingMixin.get_image_processor_dict(source, **local)
            else:
                pictures, _ = BaseVideoProcessor.get_video_processor_dict(source, **local)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{source}: its processor cannot be read ({reason}); save it beside the model") from error
        return cls(tokenizer, facts, pictures, chat_template=whole.get("chat_template"), prompt=prompt)

    def pixel_values(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """``(N, H, W, 3)`` uint8 RGB frames -> ``(N, 3, side, side)`` float32, resized and normalised."""
        parts = np.split(frames, range(PIXEL_CHUNK, len(frames), PIXEL_CHUNK))
        return torch.cat([self._pictures(list(part), return_tensors="pt")["pixel_values"] for part in parts])

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
        text: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self._chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )
        return text

    def prompt_ids(self, question: str, visual_tokens: int) -> torch.Tensor:
        """``(1, S)`` int64: the prompt with ``visual_tokens`` placeholders in the place of one.

        Raises:
            UserError: the chat template does not show exactly one medium, or as `prompt_text`.
        """
        text = self.prompt_text(question)
        begun = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not begun)["input_ids"]
        if ids.count(self.facts.placeholder_id) != 1:
            raise UserError(
                f"the chat template makes {ids.count(self.facts.placeholder_id)} times {self.placeholder} of one "
                f"{self.facts.medium}; give prompt= with one"
            )
        place = ids.index(self.facts.placeholder_id)
        return torch.tensor([ids[:place] + [self.facts.placeholder_id] * visual_tokens + ids[place + 1 :]])


def _whole_frame(pictures: dict[str, Any], side: int) -> dict[str, Any]:
    """Settings of an image processor that shows each frame once.

    Where the checkpoint tiles its images (``image_grid_pinpoints``), a frame is their base view: the whole picture,
    resized to a square. The other settings are taken as they are.
    """
    settings = {name: pictures[name] for name in _SETTINGS if name in pictures}
    if pictures.get("image_grid_pinpoints"):
        settings |= {"size": {"height": side, "width": side}, "do_center_crop": False}
    elif settings.get("crop_size") is None:
        settings["do_center_crop"] = False
    return settings
