"""Manifest rows about an episode, as plain dictionaries: captions, questions about videos, images and texts."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longvid_train.world.episode import Episode
from longvid_train.world.questions import (
    CAPTION_INSTRUCTIONS,
    IMAGE_INSTRUCTIONS,
    Question,
    ask,
    caption,
    frame_caption,
)
from longvid_train.world.settings import STILL_KINDS, SetSettings
from longvid_train.world.text import transcript

Row = dict[str, Any]

SOURCE = "longvid-world"
LICENSE = "CC0-1.0"
VERSION = "1"

_TRIES_PER_QUESTION = 8


def video_rows(
    episode: Episode, settings: SetSettings, rng: random.Random, path: str, subtitles: str | None
) -> list[Row]:
    """Rows about an episode rendered at ``path`` (relative to the manifest), with its subtitle file if it has one."""
    media = {"type": "video", "path": path, **({"subtitles": subtitles} if subtitles else {})}
    if settings.style == "caption":
        told = Question(
            kind="caption",
            text=rng.choice(CAPTION_INSTRUCTIONS),
            answer=caption(episode),
            evidence_s=(0.0, episode.duration_s),
        )
        return [_row(episode, "caption", [told], [media], "<video>\n")]
    questions = draw_questions(episode, settings.kinds, settings.questions_per_episode, rng)
    return _asked(episode, questions, [media], "<video>\n", settings.multi_turn)


def image_rows(episode: Episode, time_s: float, settings: SetSettings, rng: random.Random, path: str) -> list[Row]:
    """Rows about the one frame of an episode at ``time_s``."""
    media = {"type": "image", "path": path}
    if settings.style == "caption":
        told = Question(
            kind="caption",
            text=rng.choice(IMAGE_INSTRUCTIONS),
            answer=frame_caption(episode, time_s),
            evidence_s=(time_s, time_s),
        )
        return [_row(episode, "image-caption", [told], [media], "<image>\n")]
    kinds = [kind for kind in settings.kinds if kind in STILL_KINDS]
    questions = [
        replace(question, evidence_s=(time_s, time_s))
        for question in draw_questions(still_of(episode, time_s), kinds, settings.questions_per_episode, rng)
    ]
    return _asked(episode, questions, [media], "<image>\n", settings.multi_turn)


def text_rows(episode: Episode, settings: SetSettings, rng: random.Random) -> list[Row]:
    """Rows about an episode's transcript: text only, no media."""
    questions = draw_questions(episode, settings.kinds, settings.questions_per_episode, rng)
    return _asked(episode, questions, [], f"{transcript(episode)}\n", settings.multi_turn)


def draw_questions(episode: Episode, kinds: Sequence[str], count: int, rng: random.Random) -> list[Question]:
    """Draw up to ``count`` different questions, going round the kinds in a random order so that each gets its share."""
    order = list(kinds)
    rng.shuffle(order)
    found: dict[str, Question] = {}
    for attempt in range(_TRIES_PER_QUESTION * max(count, len(order))):
        question = ask(episode, order[attempt % len(order)], rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def still_of(episode: Episode, time_s: float) -> Episode:
    """The episode as one frame shows it: only the objects fully there, only the scene of that moment."""
    scene = replace(episode.scene_at(time_s), start_s=0.0, end_s=episode.duration_s)
    return replace(episode, scenes=(scene,), appearances=episode.visible_at(time_s), subtitles=())


def _asked(
    episode: Episode, questions: list[Question], media: list[dict[str, str]], opening: str, multi_turn: bool
) -> list[Row]:
    if not questions:
        return []
    if multi_turn:
        return [_row(episode, "dialogue", questions, media, opening)]
    rows, asked = [], dict.fromkeys((question.kind for question in questions), 0)
    for question in questions:
        again = f"-{asked[question.kind]}" if asked[question.kind] else ""
        asked[question.kind] += 1
        rows.append(_row(episode, f"{question.kind}{again}", [question], media, opening))
    return rows


def _row(episode: Episode, suffix: str, questions: list[Question], media: list[dict[str, str]], opening: str) -> Row:
    conversation = []
    for number, question in enumerate(questions):
        conversation.append({"role": "user", "text": ("" if number else opening) + question.text})
        conversation.append({"role": "assistant", "text": question.answer})
    facts: dict[str, Any] = {
        "kind": [question.kind for question in questions],
        "answer": [question.answer for question in questions],
        "evidence_s": [list(question.evidence_s) for question in questions],
    }
    if suffix != "dialogue":
        facts = {name: values[0] for name, values in facts.items()}
    return {
        "id": f"{episode.episode_id}-{suffix}",
        "media": media,
        "conversation": conversation,
        "source": SOURCE,
        "license": LICENSE,
        "version": VERSION,
        "meta": {
            **facts,
            "split": episode.split,
            "episode": episode.episode_id,
            "duration_s": episode.duration_s,
        },
    }
