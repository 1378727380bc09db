"""Prompts in files (``data_prep/prompts/NAME.txt``), with whole-word blanks such as ``{count}``."""

import hashlib
import re
from functools import cache
from importlib.resources import files

from longvid_train.endpoint import Conversation, Message

_BLANK = re.compile(r"\{(count|part|parts|words)\}")
_MARK = "=" * 12


def question_about(name: str, text: str, **blanks: int) -> Conversation:
    """The prompt with its blanks filled, and ``text`` between marks behind it."""
    prompt = _BLANK.sub(lambda match: str(blanks[match[1]]), _read(name)).strip()
    return (Message("user", f"{prompt}\n\n{_MARK}\n{text.strip()}\n{_MARK}"),)


def prompt_digest(*names: str) -> str:
    """Which wording rows were made with: the first 12 hex digits of the SHA-256 of these prompt files."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{_read(name)}\0".encode())
    return digest.hexdigest()[:12]


@cache
def _read(name: str) -> str:
    return (files("data_prep") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
