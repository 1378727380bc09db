"""Conversations about a clip as token ids: the video, then turns of question and answer, the answers supervised.

``S`` tokens of a conversation. The video's place holds one placeholder per visual token.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerFast

from longvid_train.training.nano.clip_words import frame_list
from longvid_train.types import IGNORE_INDEX
from longvid_train.world.clips import Clip, draw_questions
from longvid_train.world.questions import caption

FRAMES = "frames"
FRAMES_QUESTION = "List the frames."
DESCRIPTION = "description"
DESCRIPTION_QUESTION = "Describe the video."


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How a family writes its conversations.

    Attributes:
        first: the turn with the video: holds ``<video>`` and ``{question}``.
        later: the other turns.
        lead: what stands between a turn and the answer.
        end: token after an answer.
    """

    first: str
    later: str
    lead: str
    end: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question, its kind and its answer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """``(S,)`` ids and labels; ``answers`` are ``(kind, start, end)`` of the supervised stretches."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    answers: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class DialogueBatch:
    """``(B, S)`` int64 ids and labels, padded on the right, ``(kind, row, start, end)`` of every answer."""

    ids: torch.Tensor
    labels: torch.Tensor
    answers: tuple[tuple[str, int, int, int], ...]


def question_turns(clip: Clip, kinds: tuple[str, ...], questions: int, rng: random.Random) -> list[Turn]:
    """Up to ``questions`` different questions of the kinds, in random order."""
    return [Turn(kind=q.kind, question=q.text, answer=q.answer) for q in draw_questions(clip, kinds, questions, rng)]


def with_dense_task(turns: list[Turn], clip: Clip, rng: random.Random, *, lists_frames: bool) -> list[Turn]:
    """The turns with a task before or after them that shows every frame to the loss.

    Args:
        turns: about the clip.
        clip: what is shown.
        rng: draws the place.
        lists_frames: every frame in words; otherwise the description, where the clip shows every object.
    """
    if lists_frames:
        dense = Turn(kind=FRAMES, question=FRAMES_QUESTION, answer=frame_list(clip))
    elif clip.seen == clip.episode.appearances:
        dense = Turn(kind=DESCRIPTION, question=DESCRIPTION_QUESTION, answer=caption(clip.episode))
    else:
        return turns
    place = rng.choice((0, len(turns)))
    return [*turns[:place], dense, *turns[place:]]


class DialogueWriter:
    """Writes turns as ids; a question or an answer becomes the same ids wherever it stands.

    Args:
        tokenizer: of the checkpoint, with the placeholder ``<video>``.
        chat: of its family.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, chat: ChatFormat) -> None:
        self._chat = chat
        self._tokenizer = tokenizer
        self._placeholder = tokenizer.convert_tokens_to_ids("<video>")
        self._start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        self._encode = lru_cache(maxsize=100_000)(self._encode_uncached)

    def write(self, turns: list[Turn], visual_tokens: int) -> Dialogue:
        """The conversation; its first turn shows the video."""
        ids: list[int] = list(self._start)
        labels: list[int] = [IGNORE_INDEX] * len(ids)
        answers = []
        for number, turn in enumerate(turns):
            asked = (self._chat.later if number else self._chat.first).replace("{question}", turn.question)
            for token in self._encode(asked):
                repeated = visual_tokens if token == self._placeholder else 1
                ids += [token] * repeated
                labels += [IGNORE_INDEX] * repeated
            answer = self._encode(self._chat.lead + turn.answer + self._chat.end)
            answers.append((turn.kind, len(ids), len(ids) + len(answer)))
            ids += answer
            labels += answer
        return Dialogue(ids=tuple(ids), labels=tuple(labels), answers=tuple(answers))

    def batch(self, dialogues: list[Dialogue]) -> DialogueBatch:
        """Pad on the right, where causal attention ignores it."""
        longest = max(len(one.ids) for one in dialogues)
        ids = torch.full((len(dialogues), longest), int(self._tokenizer.pad_token_id))
        labels = torch.full((len(dialogues), longest), IGNORE_INDEX)
        for row, one in enumerate(dialogues):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            labels[row, : len(one.labels)] = torch.tensor(one.labels)
        answers = tuple(
            (kind, row, start, end) for row, one in enumerate(dialogues) for kind, start, end in one.answers
        )
        return DialogueBatch(ids=ids, labels=labels, answers=answers)

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))
