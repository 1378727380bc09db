"""Where each medium is shown in a conversation: turns with placeholders to turns with media numbers."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from longvid_train.data.manifest import Role, Turn
from longvid_train.data.row_checks import PLACEHOLDER

MediaPerTurn = Literal["as_written", "every_turn"]
PlaceholderPosition = Literal["as_written", "first", "random"]


@dataclass(frozen=True)
class PlacedTurn:
    """One turn, ready for a template.

    Attributes:
        role: who speaks.
        parts: text (str) and showings (int, the medium's number) in reading order; no blank text at either end.
        prompt: the turn's words without placeholders, trimmed: what the text decoder reads.
    """

    role: Role
    parts: tuple[str | int, ...]
    prompt: str

    @property
    def media(self) -> tuple[int, ...]:
        """Numbers of the media shown in this turn, in order."""
        return tuple(part for part in self.parts if isinstance(part, int))


def place_media(
    turns: Sequence[Turn], *, media_per_turn: MediaPerTurn, position: PlaceholderPosition, seed: str
) -> list[PlacedTurn]:
    """Number the placeholders and put the media where the options say.

    Args:
        turns: the conversation as written; its placeholders stand for the media in order.
        media_per_turn: ``"every_turn"`` shows all media that earlier turns showed again in a user turn without a
            placeholder, in front of its text.
        position: ``"first"`` moves media that stand together at one end of a turn to its start, ``"random"`` to its
            start or end; media with words between or around them stay as written.
        seed: decides the random positions; one draw a user turn.
    """
    draws = random.Random(seed)
    at_end = [turn.role == "user" and draws.random() < 0.5 for turn in turns]
    return _placed(turns, media_per_turn, position, at_end)


def possible_placements(
    turns: Sequence[Turn], *, media_per_turn: MediaPerTurn, position: PlaceholderPosition
) -> Iterator[list[PlacedTurn]]:
    """The placement with no medium moved to an end, then (``"random"`` only) one for each turn that shows media, which
    moves that turn's only.

    Turns do not influence each other, so these tell what every draw of `place_media` can give.
    """
    first = _placed(turns, media_per_turn, position, [False] * len(turns))
    yield first
    if position == "random":
        for moved, turn in enumerate(first):
            if turn.media:
                yield _placed(turns, media_per_turn, position, [number == moved for number in range(len(turns))])


def _placed(
    turns: Sequence[Turn], media_per_turn: MediaPerTurn, position: PlaceholderPosition, ends: Sequence[bool]
) -> list[PlacedTurn]:
    placed: list[PlacedTurn] = []
    shown: list[int] = []
    for turn, at_end in zip(turns, ends, strict=True):
        if turn.role == "assistant":
            placed.append(PlacedTurn(turn.role, (turn.text.strip(),), ""))
            continue
        parts = _numbered_parts(turn.text, first=len(shown))
        fresh = [part for part in parts if isinstance(part, int)]
        if not fresh and shown and media_per_turn == "every_turn":
            parts = _moved([*shown, *parts], to_end=False)
        if position != "as_written":
            parts = _moved(parts, to_end=position == "random" and at_end)
        shown.extend(fresh)
        placed.append(PlacedTurn(turn.role, tuple(parts), PLACEHOLDER.sub("", turn.text).strip()))
    return placed


def _numbered_parts(text: str, first: int) -> list[str | int]:
    """Split a text at its placeholders, numbered from ``first``, without outer white space and empty texts."""
    parts: list[str | int] = []
    for number, piece in enumerate(PLACEHOLDER.split(text.strip())):
        if number % 2:
            parts.append(first + number // 2)
        elif piece:
            parts.append(piece)
    return parts


def _moved(parts: list[str | int], *, to_end: bool) -> list[str | int]:
    """Bring media that stand together at one end to the asked end, a newline between them and the text."""
    texts = [part for part in parts if isinstance(part, str) and part.strip()]
    media = [part for part in parts if isinstance(part, int)]
    if not media or len(texts) > 1 or (texts and isinstance(parts[0], str) and isinstance(parts[-1], str)):
        return parts
    if not texts:
        return list(media)
    text = texts[0].strip()
    return [f"{text}\n", *media] if to_end else [*media, f"\n{text}"]
