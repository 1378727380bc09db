"""Chat templates as data, and the pieces of text a conversation becomes.

A conversation is a list of `TextPiece`, `EndPiece` and `ShowingPiece`. Each text piece is tokenised alone, so the ids
of a piece never depend on what follows it: the prompt of inference is, id for id, the training sequence up to the
answer.

Two ways a piece meets its tokenizer (`piece_ids`):

- a piece that opens the text, or follows a visual token or an end token, is tokenised as a text of its own.
  SentencePiece tokenizers then put their word-start mark in front, which is what the public LLaVA and LLaMA-VID
  checkpoints were trained on;
- a piece that *continues* a text (the answer after ``ASSISTANT:``) is tokenised behind an anchor whose ids are then
  removed, so that it gets the ids it has in the middle of a text.

Text is never parsed for special tokens: a user who writes ``</s>`` or the visual token's name gets letters, not
control tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from longvid_train.data.placement import PlacedTurn
from longvid_train.errors import UserError, nearest

_ANCHOR = ":"


class Template(Protocol):
    """How a conversation becomes pieces."""

    @property
    def name(self) -> str:
        """What run records call it."""
        ...

    @property
    def answer_suffix(self) -> str:
        """Text behind an answer, in front of the end token."""
        ...

    def opening_ids(self, tokenizer: Any) -> list[int]:
        """Ids in front of the first piece."""
        ...

    def pieces(self, turns: Sequence[PlacedTurn]) -> "list[Piece]":
        """Lay a conversation out; one that ends with the user's turn stays open for an answer."""
        ...


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How turns become text.

    Attributes:
        name: what configs call it.
        system: text in front of the first turn.
        user_prefix: text in front of a user's turn.
        user_suffix: text between a user's turn and the answer (part of the prompt).
        answer_prefix: text in front of an answer (supervised with it).
        answer_suffix: text behind an answer (supervised with it).
        ends_with_eos: an end-of-sequence token follows each answer (supervised).
        instruction_in_text: False keeps the user's words out of the language model's text: they reach the text decoder
            only.
    """

    name: str
    system: str
    user_prefix: str
    user_suffix: str
    answer_prefix: str
    answer_suffix: str
    ends_with_eos: bool
    instruction_in_text: bool

    def opening_ids(self, tokenizer: Any) -> list[int]:
        """A beginning-of-sequence token if the tokenizer has one."""
        return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]

    def pieces(self, turns: Sequence[PlacedTurn]) -> "list[Piece]":
        """`conversation_pieces`."""
        return conversation_pieces(turns, self)


VICUNA_V1 = ChatTemplate(
    name="vicuna_v1",
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    ),
    user_prefix="USER: ",
    user_suffix=" ASSISTANT:",
    answer_prefix=" ",
    answer_suffix="",
    ends_with_eos=True,
    instruction_in_text=True,
)
"""Stages 2 and 3 (and Vicuna v1.1/v1.5 itself): answers and ``</s>`` are supervised."""

PLAIN = ChatTemplate(
    name="plain",
    system="",
    user_prefix="",
    user_suffix="",
    answer_prefix="",
    answer_suffix="\n",
    ends_with_eos=False,
    instruction_in_text=False,
)
"""Stage 1: the media, then the caption and a newline, both supervised."""

TEMPLATES = {template.name: template for template in (VICUNA_V1, PLAIN)}


def template_by_name(name: str) -> ChatTemplate:
    """Look a template up.

    Raises:
        UserError: no template has that name.
    """
    if name not in TEMPLATES:
        raise UserError(
            f"template '{name}' does not exist{nearest(name, list(TEMPLATES)) or '.'} Use one of {list(TEMPLATES)}"
        )
    return TEMPLATES[name]


@dataclass(frozen=True)
class TextPiece:
    """Text; ``continues`` when it follows other text directly, whose last character is ``anchor`` or like it."""

    text: str
    supervised: bool = False
    continues: bool = False
    anchor: str = _ANCHOR


@dataclass(frozen=True)
class IdsPiece:
    """Text that a template has turned into ids itself, control tokens included."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class EndPiece:
    """The end-of-sequence token behind an answer, supervised."""


@dataclass(frozen=True)
class ShowingPiece:
    """One showing: the visual tokens (and subtitles) of ``media[medium]`` for the human turn number ``turn``."""

    medium: int
    turn: int


Piece = TextPiece | IdsPiece | EndPiece | ShowingPiece


def conversation_pieces(turns: Sequence[PlacedTurn], template: ChatTemplate) -> list[Piece]:
    """Lay a conversation out in pieces; one that ends with the user's turn stays open for an answer.

    Text between two showings or end tokens is one piece, except that an answer is always a piece of its own.
    """
    pieces: list[Piece] = []
    prompt = template.system
    for number, turn in enumerate(turns):
        if turn.role == "user":
            prompt = _add_user_turn(pieces, prompt, turn, number, template)
            continue
        _add_text(pieces, prompt)
        answer = template.answer_prefix + "".join(part for part in turn.parts if isinstance(part, str))
        _add_text(pieces, answer + template.answer_suffix, supervised=True)
        if template.ends_with_eos:
            pieces.append(EndPiece())
        prompt = ""
    _add_text(pieces, prompt)
    return pieces


def _add_user_turn(pieces: list[Piece], prompt: str, turn: PlacedTurn, number: int, template: ChatTemplate) -> str:
    """Append the turn's pieces up to its last showing and return the text that follows it."""
    prompt += template.user_prefix
    for part in turn.parts:
        if isinstance(part, int):
            _add_text(pieces, prompt)
            pieces.append(ShowingPiece(part, number))
            prompt = ""
        elif template.instruction_in_text:
            prompt += part
    return prompt + template.user_suffix


def _add_text(pieces: list[Piece], text: str, *, supervised: bool = False) -> None:
    if text:
        continues = bool(pieces) and isinstance(pieces[-1], TextPiece)
        pieces.append(TextPiece(text, supervised, continues))


def piece_ids(text: str, tokenizer: Any, *, continues: bool = False, anchor: str = _ANCHOR) -> list[int]:
    """Token ids of one piece of text, without special tokens; see `TextPiece`.

    Raises:
        UserError: the tokenizer merges a continuing piece with the text before it, so that training and inference would
            see different ids.
    """
    if not continues:
        return list(_plain_ids(text, tokenizer))
    before = _plain_ids(anchor, tokenizer)
    ids = _plain_ids(anchor + text, tokenizer)
    if ids[: len(before)] != before:
        raise UserError(
            f"the tokenizer merges {anchor!r} with the text {text[:20]!r} after it, so an answer would change "
            "the ids of its prompt; use a tokenizer that splits before a space"
        )
    return ids[len(before) :]


def _plain_ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
