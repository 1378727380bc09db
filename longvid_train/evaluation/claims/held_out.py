"""Held-out questions about episodes that no recipe trains on: split ``test``, the same at every frame count."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from longvid_train.errors import UserError
from longvid_train.world.clips import Clip, ask_clip, even_clip
from longvid_train.world.episode import WorldSettings, make_episode
from longvid_train.world.questions import Question, ask

KINDS = ("needle", "order", "detail")
MOST_DRAWS = 100
"""Episodes drawn for each that is wanted: about every second one can be asked all kinds in the worlds of the claims."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Questions about one clip, one of each kind."""

    clip: Clip
    questions: tuple[Question, ...]


def held_out_clips(
    *,
    episodes: int,
    duration_s: float,
    frames: int,
    seed: int,
    seen_only: bool,
    gap_s: tuple[float, float] = WorldSettings().gap_s,
    kinds: Sequence[str] = KINDS,
) -> tuple[HeldOut, ...]:
    """Episodes with one question of each kind.

    Args:
        episodes: how many.
        duration_s: of each.
        frames: evenly spaced frames of each.
        seed: of the episodes and the questions.
        seen_only: ask only what the sampled frames show; otherwise the questions do not depend on the frames.
        gap_s: shortest and longest pause between objects; longer ones keep a long episode from repeating its objects.
        kinds: of questions.

    Raises:
        UserError: hardly an episode of this world can be asked all kinds.
    """
    settings = WorldSettings(duration_s=duration_s, gap_s=gap_s)
    found: list[HeldOut] = []
    for index in range(MOST_DRAWS * episodes):
        if len(found) == episodes:
            break
        episode = make_episode(settings, split="test", seed=seed, index=index)
        clip = even_clip(episode, frames)
        questions = tuple(_question(clip, kind, f"{seed}/{index}/{kind}", seen_only) for kind in kinds)
        whole = tuple(question for question in questions if question is not None)
        if len(whole) == len(kinds):
            found.append(HeldOut(clip=clip, questions=whole))
    if len(found) < episodes:
        raise UserError(
            f"{len(found)} of {MOST_DRAWS * episodes} episodes of {duration_s:g} s, seen at {frames} frames, can be "
            f"asked {', '.join(kinds)}, and {episodes} are wanted: objects repeat in long episodes, so raise gap_s "
            f"({gap_s[0]:g} to {gap_s[1]:g} s), or shorten them"
        )
    return tuple(found)


def clips_hash(clips: Sequence[HeldOut]) -> str:
    """Tells episodes, moments and questions apart: hex SHA-256."""
    return hashlib.sha256(repr(clips).encode()).hexdigest()


def _question(clip: Clip, kind: str, seed: str, seen_only: bool) -> Question | None:
    """The first of a few draws that can be asked."""
    rng = random.Random(seed)
    draws = (ask_clip(clip, kind, rng) if seen_only else ask(clip.episode, kind, rng) for _ in range(8))
    return next((question for question in draws if question is not None), None)
