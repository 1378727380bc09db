"""A left-padded batch of open prompts to answers, with transformers' ``generate``.

``B`` rows, ``S`` tokens of the longest prompt.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import ChatTemplate, piece_ids
from longvid_train.errors import UserError
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.streaming import AnswerStreamer, OnText
from longvid_train.types import Batch


@dataclass(frozen=True)
class Generated:
    """One row's answer: its text, and how many tokens were made (the end token counts, padding does not)."""

    text: str
    new_tokens: int


@dataclass(frozen=True)
class AnswerDecoder:
    """What ends an answer, and the text of its tokens.

    Attributes:
        processor: has the tokenizer.
        template: says what stands behind an answer.
    """

    processor: MultimodalProcessor
    template: ChatTemplate

    @property
    def end_token_ids(self) -> list[int]:
        """Tokens that end an answer.

        Raises:
            UserError: there is none.
        """
        eos_token_id = self.processor.tokenizer.eos_token_id
        ends = [] if eos_token_id is None else [int(eos_token_id)]
        if self.template.answer_suffix:
            ends.append(piece_ids(self.template.answer_suffix, self.processor.tokenizer, continues=True)[-1])
        if not ends:
            raise UserError("the tokenizer has no end-of-sequence token, so an answer could not end; set eos_token")
        return ends

    @property
    def pad_token_id(self) -> int:
        """What fills finished rows."""
        pad_token_id = self.processor.tokenizer.pad_token_id
        return self.end_token_ids[0] if pad_token_id is None else int(pad_token_id)

    def text(self, ids: list[int]) -> str:
        """The answer: without special tokens, cut at the template's suffix, stripped."""
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        suffix = self.template.answer_suffix
        body = text.lstrip()
        return (body.split(suffix)[0] if suffix else body).strip()

    def generated(self, ids: list[int]) -> Generated:
        """Read a row of new tokens, padded behind its end token."""
        ends = set(self.end_token_ids)
        count = next((place for place, token in enumerate(ids, start=1) if token in ends), len(ids))
        return Generated(self.text(ids[:count]), count)


def generate_answers(
    model: Any,
    decoder: AnswerDecoder,
    batch: Batch,
    options: GenerationOptions,
    on_text: OnText | None = None,
) -> list[Generated]:
    """Answer every row of a batch.

    Args:
        model: any backbone with transformers' ``generate``, in eval mode.
        decoder: see `AnswerDecoder`.
        batch: open prompts, padded on the left, on the model's device.
        options: how tokens are chosen.
        on_text: receives the text of a single row as it grows; with beam search, at the end and at once.

    Returns:
        One answer a row, in order.
    """
    prompt = batch["text"]["input_ids"]
    assert on_text is None or len(prompt) == 1, "only a single row can be streamed"
    streamer = AnswerStreamer(decoder.text, on_text) if on_text is not None and options.num_beams == 1 else None
    visual: Mapping[str, Any] = batch["visual"] or {}
    with _seeded(options, prompt.device):
        output = model.generate(
            input_ids=prompt,
            attention_mask=batch["text"]["attention_mask"],
            **visual,
            pad_token_id=decoder.pad_token_id,
            eos_token_id=decoder.end_token_ids,
            streamer=streamer,
            **options.keywords(),
        )
    answers = [decoder.generated(row) for row in output[:, prompt.shape[1] :].tolist()]
    if on_text is not None and streamer is None:
        on_text(answers[0].text)
    return answers


@contextmanager
def _seeded(options: GenerationOptions, device: torch.device) -> Iterator[None]:
    """Draw from ``options.seed`` and give the program's own random state back afterwards."""
    if not options.samples:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        yield
