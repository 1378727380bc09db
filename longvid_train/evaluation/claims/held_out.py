"""Held-out questions about episodes that no recipe trains on: split ``test``, the same at every frame count."""

import random
from dataclasses import dataclass

from longvid_train.world.clips import Clip, ask_clip, even_clip
from longvid_train.world.episode import WorldSettings, make_episode
from longvid_train.world.questions import Question, ask

KINDS = ("needle", "order", "detail")


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
) -> tuple[HeldOut, ...]:
    """Episodes with one question of each of `KINDS`.

    Args:
        episodes: how many.
        duration_s: of each.
        frames: evenly spaced frames of each.
        seed: of the episodes and the questions.
        seen_only: ask only what the sampled frames show; otherwise the questions do not depend on the frames.
        gap_s: shortest and longest pause between objects; longer ones keep a long episode from repeating its objects.
    """
    settings = WorldSettings(duration_s=duration_s, gap_s=gap_s)
    found: list[HeldOut] = []
    index = 0
    while len(found) < episodes:
        episode = make_episode(settings, split="test", seed=seed, index=index)
        clip = even_clip(episode, frames)
        questions = tuple(_question(clip, kind, f"{seed}/{index}/{kind}", seen_only) for kind in KINDS)
        whole = tuple(question for question in questions if question is not None)
        if len(whole) == len(KINDS):
            found.append(HeldOut(clip=clip, questions=whole))
        index += 1
    return tuple(found)


def _question(clip: Clip, kind: str, seed: str, seen_only: bool) -> Question | None:
    """The first of a few draws that can be asked."""
    rng = random.Random(seed)
    draws = (ask_clip(clip, kind, rng) if seen_only else ask(clip.episode, kind, rng) for _ in range(8))
    return next((question for question in draws if question is not None), None)
