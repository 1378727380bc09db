"""What is done while transformers' ``generate`` makes an answer: its sentences are seen as they end."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria

from longvid_train.generate.zoom.sentences import may_end, split_sentences, undecided

OnSentences = Callable[[list[str], int], None]
"""Called with all complete sentences so far and the number of tokens generated, whenever there are more of them."""


LOOKS = 3
"""Tokens after which the text is read again: one that may end a sentence, and those that may stand behind its mark."""


class AnswerWatch(StoppingCriteria):
    """Never stops anything; sees every token of one answer.

    The whole text is decoded only near tokens that may end a sentence, not at every token.

    Args:
        text: ids of the answer so far to its text.
        prompt_tokens: in front of the answer.
        on_sentences: see `OnSentences`; ``None`` looks for no sentences.
    """

    def __init__(
        self, text: Callable[[list[int]], str], prompt_tokens: int, on_sentences: OnSentences | None = None
    ) -> None:
        self._text = text
        self._prompt_tokens = prompt_tokens
        self._on_sentences = on_sentences
        self._sentences = self._looks = 0
        self._begun = time.perf_counter()
        self.ids: list[int] = []
        self.first_token_s = 0.0
        self.spent_s = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """``(1, S + new)`` ids so far to ``(1,)`` False.

        Attention now is that of the query that chose the newest token. A sentence's end is seen with the first token of
        the next, so it is the attention of the sentence's last token.
        """
        synchronize(input_ids.device)
        clock = time.perf_counter()
        self.ids += input_ids[0, self._prompt_tokens + len(self.ids) :].tolist()
        if len(self.ids) == 1:
            self.first_token_s = clock - self._begun
        if self._on_sentences is not None:
            self._look(self._on_sentences)
            synchronize(input_ids.device)
        self.spent_s += time.perf_counter() - clock
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def _look(self, on_sentences: OnSentences) -> None:
        if may_end(self._text(self.ids[-1:])):
            self._looks = LOOKS
        if not self._looks:
            return
        sentences, rest = split_sentences(self._text(self.ids))
        if len(sentences) > self._sentences:
            self._sentences = len(sentences)
            on_sentences(sentences, len(self.ids))
        if not undecided(rest):
            self._looks -= 1


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished, so that a clock tells whose time it was."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
