"""The option that an answer to a multiple-choice question names, and how that was seen.

Rules are tried in the order of `RULES`; the first that finds any option decides, if it finds exactly one. An answer for
which none does is unparsed, which is reported: it is not a wrong choice but none. ``A``, ``a`` and ``I`` are letters of
options only where they cannot be words.
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longvid_train.errors import UserError
from longvid_train.generate.scoring import normalise

LEAST_OPTIONS = 2
MOST_OPTIONS = len(string.ascii_uppercase)
_OPEN = r"[(\[*\"'`]*"
_CLOSE = r"[)\].:,;*\"'`]"
_ENDS = r"(?![\w'’]|-\w)"
"""Behind a letter: it is no part of a word (``B'day``, ``T-shirt``)."""
_WORD_FOLLOWS = r"[^\S\n]+(?!(?:and|or|nor|is|because|since)\b)\w"
"""Behind ``A`` or ``I`` on the same line: it is a word of a sentence (``A dog``, ``I think``)."""
_LETTER = rf"([B-HJ-Zb-hj-z]|[AI](?!{_WORD_FOLLOWS})|[ai](?=[^\S\n]*(?:\n|$)|[)\].:,;!?*\"`])){_ENDS}"
_FIRST = re.compile(
    rf"{_OPEN}(?:([A-Za-z])(?={_CLOSE}+(?:\s|$)|[^\S\n]*(?:\n|$))|([A-Z])(?=\s+(?:(?:because|since)\b|[-–—]\s)))"
)
_LISTED = re.compile(rf"^{_OPEN}([A-Z])(?:[)\].:*]+(?=\s|$)|[^\S\n]*$)", re.MULTILINE)
_ALSO = re.compile(rf"{_CLOSE}*?\s*(?:[,/&+:]\s*(?:(?:and|or)\b)?|(?:and|or)\b)\s*(?:[Oo]ption\s+)?{_OPEN}{_LETTER}")
_STATED = re.compile(
    rf"\b(?i:answer|option|choice)\b(?i:\s+(?:is|would\s+be|should\s+be))?\s*[:-]?\s*(?i:option\s+)?{_OPEN}{_LETTER}"
)
_DENIED = "".join(rf"(?<!\b(?i:{word}) )" for word in ("not", "nor", "neither"))
_LONE = re.compile(rf"(?<![\w'’-]){_DENIED}([A-Z]){_ENDS}")
_WORD = re.compile(_WORD_FOLLOWS)


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
    assert LEAST_OPTIONS <= len(options) <= MOST_OPTIONS
    for name, rule in RULES.items():
        found = {option for option in rule(answer.strip(), options) if option < len(options)}
        if found:
            return Choice(found.pop(), name) if len(found) == 1 else Choice(None, None)
    return Choice(None, None)


def right_option(truth: str, options: Sequence[str]) -> int:
    """The option that a right answer names; nothing is read into it, unlike into a model's words.

    Raises:
        UserError: it is neither the letter of one option nor the text of exactly one.
    """
    said = truth.strip()
    found = {number for number, option in enumerate(options) if option.strip() == said}
    if len(said) == 1 and said in string.ascii_letters and _number(said) < len(options):
        found.add(_number(said))
    if len(found) != 1:
        raise UserError(
            f"the right answer '{truth}' is not the letter of one of the {len(options)} options, nor the text of "
            "exactly one; write the letter"
        )
    return found.pop()


def _letter_first(answer: str, options: Sequence[str]) -> list[int]:
    """``B``, ``(B)``, ``B.``, ``B: a dog``, ``b)``, ``B because``, ``B`` on a line; not ``A dog``.

    Further letters count with it (``A, B``; lines ``A. ...``, ``B. ...``), unless the answer is stated behind them.
    """
    first = _FIRST.match(answer)
    if first is None:
        return []
    found = [first[1] or first[2], *_LISTED.findall(answer), *_also(answer, first.end())]
    letters = [_number(one) for one in found]
    return letters if len(set(letters)) == 1 or not _stated(answer, options) else []


def _stated(answer: str, options: Sequence[str]) -> list[int]:
    """``The answer is (B)``, ``Option C``, ``Answer: d``; not ``The answer is a dog``."""
    found = [one for match in _STATED.finditer(answer) for one in (match[1], *_also(answer, match.end()))]
    return [_number(one) for one in found]


def _also(answer: str, behind: int) -> list[str]:
    """The letter that is named in one breath with the one that ends at ``behind``: ``A or B``, ``A, B and C``."""
    match = _ALSO.match(answer, behind)
    return [] if match is None else [match[1]]


def _text(answer: str, options: Sequence[str]) -> list[int]:
    """The answer is an option's text, apart from case, and else also from punctuation and articles."""
    same = [number for number, option in enumerate(options) if option.strip().lower() == answer.lower()]
    said = normalise(answer)
    return same or [number for number, option in enumerate(options) if said and normalise(option) == said]


def _text_inside(answer: str, options: Sequence[str]) -> list[int]:
    """The answer holds an option's text; of texts within each other the longest. Letters that stand alone count too."""
    said = f" {normalise(answer)} "
    words = [normalise(option) for option in options]
    inside = [number for number, one in enumerate(words) if one and f" {one} " in said]
    longer = [words[number] for number in inside]
    found = [
        number
        for number in inside
        if not any(words[number] != other and f" {words[number]} " in f" {other} " for other in longer)
    ]
    return [*found, *_lone_letter(answer, options)] if found else []


def _lone_letter(answer: str, options: Sequence[str]) -> list[int]:
    """Capital letters of options that stand alone somewhere and are not denied (``not B``).

    ``I think`` holds none. ``A dog`` holds none either, but ``A`` before a word makes another letter doubtful.
    """
    sure: list[int] = []
    doubtful: list[int] = []
    for match in _LONE.finditer(answer):
        word = match[1] in "AI" and _WORD.match(answer, match.end()) is not None
        if _number(match[1]) < len(options) and not (word and match[1] == "I"):
            (doubtful if word else sure).append(_number(match[1]))
    return [*sure, *doubtful] if sure else []


RULES: dict[str, Callable[[str, Sequence[str]], list[int]]] = {
    "letter": _letter_first,
    "stated": _stated,
    "text": _text,
    "text inside": _text_inside,
    "lone letter": _lone_letter,
}


def _number(found: str) -> int:
    return string.ascii_uppercase.index(found.upper())
