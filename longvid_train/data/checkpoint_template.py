"""A public checkpoint's own chat template as pieces: prompts are rendered and tokenised whole, as inference does.

Unlike a `ChatTemplate`, whose words are plain text, it holds control tokens (``<|im_start|>``); a user's turn that
holds one is refused. Media stand in front of a turn's words, where the checkpoints' templates put them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from longvid_train.data.placement import PlacedTurn
from longvid_train.data.templates import EndPiece, IdsPiece, Piece, ShowingPiece, TextPiece
from longvid_train.errors import UserError
from longvid_train.models.backbones.processing import BackboneProcessor


@dataclass(frozen=True)
class CheckpointTemplate:
    """Pieces of a conversation whose prompts are those of ``BackboneProcessor``; answers and end tokens are supervised.

    Attributes:
        checkpoint: has the chat template and the tokenizer.
    """

    checkpoint: BackboneProcessor

    name: ClassVar[str] = "checkpoint"
    answer_suffix: ClassVar[str] = ""

    def opening_ids(self, tokenizer: Any) -> list[int]:
        """None: the first piece holds what stands in front of it."""
        return []

    def pieces(self, turns: Sequence[PlacedTurn]) -> list[Piece]:
        """Lay a conversation out; one that ends with the user's turn stays open for an answer.

        Raises:
            UserError: media behind or between a turn's words, control tokens in words, or a chat template that cannot
                show the conversation.
        """
        pieces: list[Piece] = []
        earlier: list[tuple[str, int]] = []
        prompt = ""
        for number, turn in enumerate(turns):
            if turn.role == "user":
                _check_order(turn)
                prompt = self.checkpoint.turn_text(turn.prompt, len(turn.media), earlier)
                pieces.extend(self._prompt_pieces(prompt, turn, number, opens=not earlier))
                earlier.append((turn.prompt, len(turn.media)))
            else:
                answer = "".join(part for part in turn.parts if isinstance(part, str))
                lead = self.checkpoint.answer_lead(*earlier[0])
                pieces.append(TextPiece(lead + answer, supervised=True, continues=True, anchor=prompt[-1:]))
                pieces.append(EndPiece())
        return pieces

    def _prompt_pieces(self, prompt: str, turn: PlacedTurn, number: int, *, opens: bool) -> Iterator[Piece]:
        ids = self.checkpoint.text_ids(prompt, opens=opens)
        self.checkpoint.check_placeholders(ids, len(turn.media))
        start = 0
        for medium in turn.media:
            place = ids.index(self.checkpoint.facts.placeholder_id, start)
            yield IdsPiece(tuple(ids[start:place]))
            yield ShowingPiece(medium, number)
            start = place + 1
        yield IdsPiece(tuple(ids[start:]))


def _check_order(turn: PlacedTurn) -> None:
    words_seen = False
    for part in turn.parts:
        if isinstance(part, str):
            words_seen = words_seen or bool(part.strip())
        elif words_seen:
            raise UserError(
                f"the turn {turn.prompt[:40]!r} shows media behind or between its words, and the checkpoint's chat "
                "template shows them first; write the placeholder in front, or set conversation.placeholder_position "
                "to first"
            )
