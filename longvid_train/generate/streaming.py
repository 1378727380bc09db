"""Text of an answer while it is generated; what is passed on adds up to the final answer."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

OnText = Callable[[str], None]


class AnswerStreamer(BaseStreamer):
    """Passes the words of one answer on as soon as the next word has begun.

    The last word waits because a later token may still change it. Text that will not be part of the answer (outer white
    space, special tokens, what stands behind ``stop``) is never passed on.

    Args:
        decode: token ids of the whole answer so far to its text.
        on_text: receives each new piece.
    """

    def __init__(self, decode: Callable[[list[int]], str], on_text: OnText) -> None:
        self._decode = decode
        self._on_text = on_text
        self._ids: list[int] = []
        self._passed = ""
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Take the prompt (first call) or the next token of the one row."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids.extend(torch.as_tensor(value).flatten().tolist())
        text = self._decode(self._ids)
        self._pass_on(text[: text.rfind(" ") + 1].rstrip())

    def end(self) -> None:
        """Pass the rest on; the whole answer on a new line if its tokenizer has changed words already passed on."""
        text = self._decode(self._ids)
        if text.startswith(self._passed):
            self._pass_on(text)
        else:
            self._on_text(f"\n{text}")

    def _pass_on(self, text: str) -> None:
        if len(text) > len(self._passed) and text.startswith(self._passed):
            self._on_text(text[len(self._passed) :])
            self._passed = text
