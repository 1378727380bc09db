"""Replies to values, strictly: one JSON object with exactly the keys asked for, or `OffFormatError`."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longvid_train.data.row_checks import PLACEHOLDER
from longvid_train.endpoint import OffFormatError

_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*)\n\s*```\s*", re.DOTALL)
_SOURCE_NAMED = re.compile(
    r"\bsynops[ie]s\b|\b(?:according to|based on|in) the (?:script|screenplay|text|story provided)\b"
    r"|\bthe (?:provided|given) (?:script|screenplay|text|story)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Pair:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Summaries:
    """A movie in one paragraph and in several."""

    brief: str
    detailed: str


def parse_summaries(text: str) -> Summaries:
    """``{"brief": ..., "detailed": ...}``: one paragraph, and a longer text.

    Raises:
        OffFormatError: it is not that.
    """
    value = _object(text, ("brief", "detailed"))
    brief, detailed = (_filled(value[name], name) for name in ("brief", "detailed"))
    if "\n\n" in brief:
        raise OffFormatError('"brief" must be one paragraph')
    if len(detailed) <= len(brief):
        raise OffFormatError('"detailed" must be longer than "brief"')
    return Summaries(brief, detailed)


def pairs_parser(count: int, *names: str) -> Callable[[str], tuple[tuple[Pair, ...], ...]]:
    """A parser of ``{NAME: [{"question": ..., "answer": ...}, ...], ...}``: ``count`` pairs a name, names in order."""

    def parse(text: str) -> tuple[tuple[Pair, ...], ...]:
        value = _object(text, names)
        found = tuple(_pairs(value[name], name, count) for name in names)
        questions = [pair.question.casefold() for pairs in found for pair in pairs]
        if len(set(questions)) != len(questions):
            raise OffFormatError("the same question stands twice; ask a different thing each time")
        return found

    return parse


def notes_parser(most_characters: int) -> Callable[[str], str]:
    """A parser of ``{"notes": ...}`` of at most so many characters."""

    def parse(text: str) -> str:
        notes = _filled(_object(text, ("notes",))["notes"], "notes")
        if len(notes) > most_characters:
            raise OffFormatError(f'"notes" has {len(notes)} characters; {most_characters} are allowed')
        return notes

    return parse


def _object(text: str, names: tuple[str, ...]) -> dict[str, Any]:
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError) as error:
        raise OffFormatError("it is not one JSON object and nothing else") from error
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise OffFormatError(f"the JSON object must have exactly the keys {', '.join(names)}")
    return value


def _pairs(value: Any, name: str, count: int) -> tuple[Pair, ...]:
    if not isinstance(value, list) or len(value) != count:
        held = len(value) if isinstance(value, list) else "no"
        raise OffFormatError(f'"{name}" must be an array of {count} pairs, not of {held}')
    return tuple(_pair(entry, f"{name}[{number}]") for number, entry in enumerate(value))


def _pair(value: Any, where: str) -> Pair:
    if not isinstance(value, dict) or sorted(value) != ["answer", "question"]:
        raise OffFormatError(f'"{where}" must have exactly the keys question and answer')
    return Pair(_filled(value["question"], f"{where}.question"), _filled(value["answer"], f"{where}.answer"))


def _filled(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise OffFormatError(f'"{where}" must be text with something in it')
    if PLACEHOLDER.search(value):
        raise OffFormatError(f'"{where}" must not hold <image> or <video>')
    named = _SOURCE_NAMED.search(value)
    if named:
        raise OffFormatError(f'"{where}" says "{named[0]}"; never mention that you read a text')
    return value.strip()
