"""Clips: an episode as a model sees it, through frames sampled evenly from the first to the last.

A question about a clip can be answered only where its evidence stands on a sampled frame; `ask_clip` asks no others.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from longvid_train.world.episode import Appearance, Episode
from longvid_train.world.questions import Question, ask

LAST_FRAME_S = 0.25
"""A video of 4 frames a second, the world's default, ends with a frame this long before its duration."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """An episode and the times of its sampled frames, in seconds."""

    episode: Episode
    times_s: tuple[float, ...]

    @property
    def seen(self) -> tuple[Appearance, ...]:
        """The objects that stand fully on a sampled frame, in the order they entered."""
        return tuple(a for a in self.episode.appearances if any(a.enter_s <= t < a.leave_s for t in self.times_s))


def even_clip(episode: Episode, frames: int) -> Clip:
    """``frames`` evenly spaced frames from the first to the last, as ``longvid ask --frames`` takes them.

    One frame is the first.
    """
    last_s = max(0.0, episode.duration_s - LAST_FRAME_S)
    step_s = last_s / max(1, frames - 1)
    return Clip(episode=episode, times_s=tuple(round(index * step_s, 3) for index in range(frames)))


def ask_clip(clip: Clip, kind: str, rng: random.Random) -> Question | None:
    """Draw one question of a kind whose evidence is seen, or None where the clip shows none."""
    question = ask(clip.episode, kind, rng)
    if question is None or not _evidence_is_seen(clip, question):
        return None
    return question


def draw_questions(clip: Clip, kinds: Sequence[str], wanted: int, rng: random.Random) -> tuple[Question, ...]:
    """Up to ``wanted`` different questions of the kinds, drawn evenly, in the order drawn."""
    found: dict[str, Question] = {}
    for _ in range(4 * wanted):
        question = ask_clip(clip, rng.choice(kinds), rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == wanted:
            break
    return tuple(found.values())


def _evidence_is_seen(clip: Clip, question: Question) -> bool:
    """The objects a question is about are on sampled frames: one, two for order, all of them for a whole video."""
    start_s, end_s = question.evidence_s
    if (start_s, end_s) == (0.0, clip.episode.duration_s):
        return clip.seen == clip.episode.appearances
    asked = [a for a in clip.episode.appearances if a.enter_s >= start_s][: 2 if question.kind == "order" else 1]
    return set(asked) <= set(clip.seen)
