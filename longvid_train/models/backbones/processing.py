"""A checkpoint's own prompt and picture settings: frames to pixels, a question to ids.

transformers' video processors need torchvision; here frames pass its PIL image processor with the checkpoint's video
settings, which is also what the models were trained with.

``N`` frames, ``S`` tokens of the prompt.
"""

import copy
from collections.abc import Sequence
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

ANSWER = "(the answer that stands here)"
"""Stands for an earlier answer when a chat template is asked what follows it."""

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
        self.picture_settings = _whole_frame(pictures, facts.image_side)
        self._pictures = CLIPImageProcessorPil(**self.picture_settings)
        self._controls = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._prompt = prompt if prompt is not None or chat_template is not None else facts.prompt
        if self._prompt is not None:
            for part in (self.placeholder, "{question}"):
                if self._prompt.count(part) != 1:
                    raise UserError(f"prompt {self._prompt!r} must hold {part} exactly once")
        elif chat_template is None:
            raise UserError(
                f"the '{facts.model_type}' checkpoint has no chat template, and its family has several prompts; "
                f"give one, e.g. --prompt 'USER: {self.placeholder}\\n{{question}} ASSISTANT:'"
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

    def resized(self, side: int) -> "BackboneProcessor":
        """The same prompts, and pictures of another size: resizing and cropping are scaled with it.

        Args:
            side: pixels a side of a preprocessed frame.
        """
        twin = copy.copy(self)
        twin.picture_settings = _scaled(self.picture_settings, side, self.facts.image_side)
        twin._pictures = CLIPImageProcessorPil(**twin.picture_settings)
        return twin

    def pixel_values(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """``(N, H, W, 3)`` uint8 RGB frames -> ``(N, 3, side, side)`` float32, resized and normalised."""
        parts = np.split(frames, range(PIXEL_CHUNK, len(frames), PIXEL_CHUNK))
        return torch.cat([self._pictures(list(part), return_tensors="pt")["pixel_values"] for part in parts])

    def turn_text(self, words: str, media: int, earlier: Sequence[tuple[str, int]] = ()) -> str:
        """What stands in front of an answer: the whole prompt of a first question, or what follows the answer before.

        Media stand in front of the words, one placeholder each. Of a follow-up the text begins behind the token that
        ends the answer before it.

        Args:
            words: of the question.
            media: shown with it.
            earlier: words and media of the questions before it.

        Raises:
            UserError: the words hold a control token of the checkpoint, or there is no chat template and the question
                is a follow-up or shows another number of media than one.
        """
        self._check_words(words)
        if self._prompt is not None:
            return self._documented(words, media, earlier)
        messages: list[dict[str, Any]] = []
        for asked, shown in (*earlier, (words, media)):
            messages += [self._asked(asked, shown), _said(ANSWER)]
        text: str = self.tokenizer.apply_chat_template(
            messages[:-1], chat_template=self._chat_template, add_generation_prompt=True, tokenize=False
        )
        return self._behind_answer(text.rsplit(ANSWER, 1)[1]) if earlier else text

    def answer_lead(self, words: str, media: int) -> str:
        """White space in front of an answer: as the chat template writes a whole conversation, where its prompt for
        generation is the beginning of that; else a space behind words and nothing behind white space.

        LLaVA-OneVision's template is not such: it ends the prompt with ``assistant`` and a newline, and has a space
        between the two in front of an answer that was given.

        Args:
            words: of the question.
            media: shown with it.

        Raises:
            UserError: as `turn_text`.
        """
        prompt = self.turn_text(words, media)
        if self._prompt is None:
            given: str = self.tokenizer.apply_chat_template(
                [self._asked(words, media), _said(ANSWER)], chat_template=self._chat_template, tokenize=False
            )
            lead = given.split(ANSWER)[0].removeprefix(prompt)
            if not lead.strip():
                return lead
        return "" if prompt[-1:].isspace() else " "

    def text_ids(self, text: str, *, opens: bool) -> list[int]:
        """Ids of a piece of prompt; one that ``opens`` the sequence gets the first token that the tokenizer adds."""
        begun = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        return list(self.tokenizer(text, add_special_tokens=opens and not begun)["input_ids"])

    def check_placeholders(self, ids: Sequence[int], media: int) -> None:
        """Refuse a prompt that does not show its media.

        Raises:
            UserError: naming both numbers.
        """
        found = list(ids).count(self.facts.placeholder_id)
        if found != media:
            raise UserError(
                f"the chat template makes {found} times {self.placeholder} of {media} {self.facts.medium}s; "
                "give a prompt with one (--prompt)"
            )

    def prompt_text(self, question: str) -> str:
        """The prompt of one question about one medium, with one placeholder; raises as `turn_text`."""
        return self.turn_text(question, 1)

    def prompt_ids(self, question: str, visual_tokens: int) -> torch.Tensor:
        """``(1, S)`` int64: the prompt with ``visual_tokens`` placeholders in the place of one.

        Raises:
            UserError: as `turn_text` and `check_placeholders`.
        """
        ids = self.text_ids(self.prompt_text(question), opens=True)
        self.check_placeholders(ids, 1)
        place = ids.index(self.facts.placeholder_id)
        return torch.tensor([ids[:place] + [self.facts.placeholder_id] * visual_tokens + ids[place + 1 :]])

    def _asked(self, words: str, media: int) -> dict[str, Any]:
        content = [*({"type": self.facts.medium} for _ in range(media)), {"type": "text", "text": words}]
        return {"role": "user", "content": content}

    def _check_words(self, words: str) -> None:
        if self.placeholder in words:
            raise UserError(f"the question holds {self.placeholder}, which stands for the video; leave it out")
        for token in sorted(self._controls):
            if token in words:
                raise UserError(f"the question holds {token}, a control token of the checkpoint; leave it out")

    def _documented(self, words: str, media: int, earlier: Sequence[tuple[str, int]]) -> str:
        assert self._prompt is not None
        if earlier:
            raise UserError(
                f"a '{self.facts.model_type}' without a chat template answers one question: how a second one is "
                "written is not known; save a chat_template beside the model, or ask the questions one by one"
            )
        if media != 1:
            raise UserError(
                f"the question shows {media} media, but the prompt of this checkpoint holds {self.placeholder} once; "
                "show one, or save a chat_template beside the model"
            )
        return self._prompt.replace("{question}", words)

    def _behind_answer(self, rest: str) -> str:
        """``rest`` of a rendered conversation without the token that ends the answer in front of it."""
        trimmed = rest.lstrip(" ")
        end = self.tokenizer.eos_token
        return trimmed.removeprefix(end) if end is not None and trimmed.startswith(end) else rest


def _said(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": answer}]}


def _scaled(settings: dict[str, Any], side: int, full_side: int) -> dict[str, Any]:
    """Sizes times ``side / full_side``, to whole pixels; what is ``full_side`` becomes ``side``."""

    def scaled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: scaled(one) for name, one in value.items()}
        return value if value is None else round(value * side / full_side)

    return settings | {name: scaled(settings[name]) for name in ("size", "crop_size") if name in settings}


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
