"""Where an answer ends, which training and conversations decide with the same decoder."""

from typing import Any

import pytest
import torch

from longvid_train.data.templates import PLAIN, VICUNA_V1, ChatTemplate, piece_ids
from longvid_train.generate.chat import VideoChat
from longvid_train.generate.decoding import AnswerDecoder, Generated
from longvid_train.generate.generation import generate_answers
from longvid_train.generate.options import GenerationOptions
from longvid_train.types import Batch


class Scripted:
    """Generates given tokens as transformers does: a row ends behind an end token and is then padded."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def generate(
        self, *, input_ids: torch.Tensor, eos_token_id: list[int], pad_token_id: int, **options: Any
    ) -> torch.Tensor:
        assert (options["do_sample"], options["num_beams"]) == (False, 1)
        ended = []
        for row in self.rows:
            end = next((place for place, token in enumerate(row, start=1) if token in eos_token_id), len(row))
            ended.append(row[:end])
        longest = min(max(map(len, ended)), options["max_new_tokens"])
        padded = [(row + [pad_token_id] * longest)[:longest] for row in ended]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN, ["a red square", "blue"]),
        (VICUNA_V1, ["a red square\nand more", "blue\nand"]),
    ],
)
def test_an_answer_ends_at_the_end_token_or_the_suffix_of_its_template(
    chat: VideoChat, template: ChatTemplate, expected: list[str]
) -> None:
    tokenizer = chat.prompting.processor.tokenizer
    texts = ["a red square\nand more", "blue\nand"]
    rows = [[*piece_ids(text, tokenizer, continues=True), tokenizer.eos_token_id] for text in texts]
    prompt = torch.ones(2, 3, dtype=torch.long)
    batch: Batch = {
        "text": {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)},
        "visual": None,
        "sample_ids": ["a", "b"],
        "shortened": {},
    }
    decoder = AnswerDecoder(chat.prompting.processor, template)
    answers = generate_answers(Scripted(rows), decoder, batch, GenerationOptions(max_new_tokens=99))
    lengths = [
        len(piece_ids(text, tokenizer, continues=True)) + 1 for text in expected
    ]  # the newline of the one, the end token of the other
    assert answers == [Generated(text, length) for text, length in zip(expected, lengths, strict=True)]
