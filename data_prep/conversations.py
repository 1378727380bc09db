"""LLaVA's and ShareGPT's conversations (``from`` human or gpt, ``value``) to manifest turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from data_prep.fields import list_field, shown, text_field
from data_prep.outcome import BadRecordError, DroppedError
from longvid_train.data.manifest import MediaType, Turn
from longvid_train.data.row_checks import PLACEHOLDER

_ROLES: dict[str, Literal["user", "assistant"]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}
_SYSTEM = "system"


@dataclass(frozen=True)
class Conversation:
    """Turns that alternate from the user's on and end with an answer.

    Attributes:
        turns: the turns with the words of the source.
        unusable_turns: turns of the source in front of the first question and behind the last answer, left out.
        system: the source's system message, "" without one.
    """

    turns: tuple[Turn, ...]
    unusable_turns: int
    system: str = ""

    @property
    def notes(self) -> dict[str, Any]:
        """What the row's ``meta`` must tell about it."""
        notes: dict[str, Any] = {"unusable_turns": self.unusable_turns} if self.unusable_turns else {}
        return {**notes, "system": self.system} if self.system else notes


def read_conversation(record: Any, name: str = "conversations") -> Conversation:
    """The conversation in field ``name``.

    Turns in front of the first question and behind the last answer carry nothing to train on: they are left out and
    counted. (The public training code drops the former silently and trains on a padded end.)

    Raises:
        BadRecordError: it is no array of ``{"from": ..., "value": ...}``, a speaker is unknown, an answer is blank, or
            two turns of one speaker follow each other.
        DroppedError: it has no question with an answer.
    """
    spoken = [_speaker_and_text(turn) for turn in list_field(record, name)]
    system = spoken.pop(0)[1] if spoken[0][0] == _SYSTEM else ""
    roles = [_role(speaker) for speaker, _ in spoken]
    first = roles.index("user") if "user" in roles else len(roles)
    last = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else -1
    if last < first:
        raise DroppedError("no question with an answer", f"speakers: {', '.join(roles[:10])}")
    kept = [Turn(role, text) for role, (_, text) in zip(roles, spoken, strict=True)][first : last + 1]
    for before, after in pairwise(kept):
        if before.role == after.role:
            raise BadRecordError("two turns of one speaker follow each other", f"'{after.role}' speaks twice in a row")
    for turn in kept:
        if turn.role == "assistant" and not turn.text.strip():
            raise BadRecordError("an answer is blank")
    return Conversation(tuple(kept), len(spoken) - len(kept), system)


def show_medium(turns: Sequence[Turn], kind: MediaType) -> tuple[Turn, ...]:
    """Turn the source's placeholder, ``<image>`` or ``<video>``, into that of ``kind``; add one if there is none.

    One is added in front of the first question's words: where a medium stands is drawn anew in training
    (``placeholder_position: random``).

    Raises:
        BadRecordError: a record with one medium has more than one placeholder.
        DroppedError: an answer holds a placeholder, which manifests keep for user turns.
    """
    count = sum(len(PLACEHOLDER.findall(turn.text)) for turn in turns if turn.role == "user")
    if count > 1:
        raise BadRecordError(f"{count} placeholders for one {kind}")
    check_no_placeholder([turn for turn in turns if turn.role == "assistant"])
    if count == 0:
        return (Turn("user", f"<{kind}>\n{turns[0].text}"), *turns[1:])
    return tuple(Turn(turn.role, PLACEHOLDER.sub(f"<{kind}>", turn.text)) for turn in turns)


def check_no_placeholder(turns: Sequence[Turn]) -> None:
    """Refuse text that manifests would take for a medium, e.g. ``<video>`` in a conversation about HTML.

    Raises:
        DroppedError: such text is there.
    """
    for turn in turns:
        found = PLACEHOLDER.search(turn.text)
        if found:
            what = f"'{found.group()}' in a turn of the {turn.role}"
            raise DroppedError("the text holds a literal <image> or <video>", what)


def split_rounds(turns: Sequence[Turn], max_rounds: int | None) -> list[tuple[Turn, ...]]:
    """Cut a conversation into pieces of at most ``max_rounds`` questions with their answers; None leaves it whole."""
    if max_rounds is None:
        return [tuple(turns)]
    step = 2 * max_rounds
    return [tuple(turns[start : start + step]) for start in range(0, len(turns), step)]


def _speaker_and_text(turn: Any) -> tuple[str, str]:
    speaker = text_field(turn, "from")
    text = turn.get("value")
    if not isinstance(text, str):
        raise BadRecordError("a turn's 'value' is not text", shown(text))
    return speaker, text


def _role(speaker: str) -> Literal["user", "assistant"]:
    if speaker not in _ROLES:
        raise BadRecordError("a turn's speaker is unknown", f"'{speaker}'; known are {', '.join(_ROLES)}")
    return _ROLES[speaker]
