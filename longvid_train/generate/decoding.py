"""What ends an answer, and the text of its tokens."""

from dataclasses import dataclass

from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import Template, piece_ids
from longvid_train.errors import UserError


@dataclass(frozen=True)
class Generated:
    """One row's answer: its text, and how many tokens were made (the end token counts, padding does not)."""

    text: str
    new_tokens: int


@dataclass(frozen=True)
class AnswerDecoder:
    """Reads rows of new tokens.

    Attributes:
        processor: has the tokenizer.
        template: says what stands behind an answer.
        further_ends: tokens that end an answer beside the tokenizer's end token, from the generation configuration.
    """

    processor: MultimodalProcessor
    template: Template
    further_ends: tuple[int, ...] = ()

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
        ends += [token for token in self.further_ends if token not in ends]
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
