"""The option that an answer to a multiple-choice question names, and how that was seen.

Rules are tried in the order of `RULES`; the first that finds exactly one option decides. An answer for which none does
is unparsed, which is reported: it is not a wrong choice but none.
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longvid_train.generate.scoring import normalise

_MOST_OPTIONS = len(string.ascii_uppercase)
_STATED = re.compile(
    r"\b(?:answer|option|choice)(?:\s+(?:is|would\s+be|should\s+be))?\s*:?\s*(?:option\s+)?[(\[]?([A-Z])\b(?!')",
    re.IGNORECASE,
)
_LONE = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")


@dataclass(frozen=True)
class Choice:
    """What was read: the number of the option from 0 and the rule that saw it; both ``None`` where none did."""

    option: int | None
    rule: str | None


def letter(option: int) -> str:
    """``0`` to ``"A"``."""
    return string.ascii_uppercase[option]


def read_choice(answer: str, options: Sequence[str]) -> Choice:
    """The option that ``answer`` names.

    Args:
        answer: the model's words.
        options: texts of the options, at most 26.
    """
    assert 2 <= len(options) <= _MOST_OPTIONS
    for name, rule in RULES.items():
        found = {option for option in rule(answer.strip(), options) if option < len(options)}
        if len(found) == 1:
            return Choice(found.pop(), name)
    return Choice(None, None)


def _letter_first(answer: str, options: Sequence[str]) -> list[int]:
    """``B``, ``(B)``, ``B.``, ``B: a dog``, ``b)``; not ``A dog``."""
    match = re.match(r"[(\[*\"']*([A-Za-z])(?:[)\].:,*\"']+(?=\s|$)|$)", answer)
    return [] if match is None else [_number(match[1])]


def _stated(answer: str, options: Sequence[str]) -> list[int]:
    """``The answer is (B)``, ``Option C``, ``Answer: d``."""
    return [_number(found) for found in _STATED.findall(answer)]


def _text(answer: str, options: Sequence[str]) -> list[int]:
    """The answer is an option's text, apart from case, punctuation and articles."""
    said = normalise(answer)
    return [number for number, option in enumerate(options) if normalise(option) == said]


def _text_inside(answer: str, options: Sequence[str]) -> list[int]:
    """The answer holds an option's text; of texts within each other the longest."""
    said = f" {normalise(answer)} "
    words = [normalise(option) for option in options]
    inside = [number for number, one in enumerate(words) if one and f" {one} " in said]
    longer = [words[number] for number in inside]
    return [
        number
        for number in inside
        if not any(words[number] != other and f" {words[number]} " in f" {other} " for other in longer)
    ]


def _lone_letter(answer: str, options: Sequence[str]) -> list[int]:
    """A capital letter that stands alone somewhere; ``A`` and ``I`` are words too and do not count."""
    return [_number(found) for found in _LONE.findall(answer) if found not in "AI"]


RULES: dict[str, Callable[[str, Sequence[str]], list[int]]] = {
    "letter": _letter_first,
    "stated": _stated,
    "text": _text,
    "text inside": _text_inside,
    "lone letter": _lone_letter,
}


def _number(found: str) -> int:
    return string.ascii_uppercase.index(found.upper())
