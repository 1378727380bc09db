"""Clips: where the sampled frames stand, and that what is asked can be seen on them, worked out from raw events."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.video.sampling import UniformFrames, select
from longvid_train.world.clips import Clip, ask_clip, draw_questions, even_clip
from longvid_train.world.episode import Episode, WorldSettings, make_episode

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10_000)


def build(seed: int, duration_s: float = 12.0) -> Episode:
    return make_episode(WorldSettings(duration_s=duration_s), split="val", seed=seed, index=0)


@pytest.mark.parametrize(("duration_s", "frames"), [(8.0, 8), (8.0, 3), (24.0, 64), (2.0, 2), (5.0, 1)])
def test_frames_stand_where_longvid_ask_takes_them_from_a_video_of_4_frames_a_second(
    duration_s: float, frames: int
) -> None:
    stamps = np.arange(round(duration_s * 4)) / 4
    taken = stamps[select(UniformFrames(count=frames), stamps, duration_s)]
    times_s = np.array(even_clip(build(1, duration_s), frames).times_s)
    assert times_s.shape == (frames,)
    assert np.abs(times_s - taken).max() <= 0.125 + 1e-3  # half a frame of the file


@few
@given(seeds, st.integers(1, 30))
def test_seen_objects_are_those_fully_on_a_sampled_frame(seed: int, frames: int) -> None:
    clip = even_clip(build(seed), frames)
    for appearance in clip.episode.appearances:
        on_screen = [t for t in clip.times_s if appearance.enter_s <= t < appearance.leave_s]
        assert (appearance in clip.seen) == bool(on_screen)


@few
@given(seeds, st.integers(2, 12))
def test_what_is_asked_is_seen(seed: int, frames: int) -> None:
    clip = even_clip(build(seed), frames)
    names = {f"{a.colour} {a.shape}" for a in clip.seen}
    for kind in ("needle", "detail", "order"):
        question = ask_clip(clip, kind, random.Random(seed))
        if question is None:
            continue
        assert any(name in question.text for name in names)
        if kind == "order":
            assert question.answer in names


def test_an_object_between_two_frames_is_not_asked_about() -> None:
    episode = build(3)
    blind = Clip(episode=episode, times_s=(0.0,))
    hidden = [a for a in episode.appearances if a.enter_s > 0]
    assert hidden and not any(a in blind.seen for a in hidden)
    for seed in range(20):
        question = ask_clip(blind, "detail", random.Random(seed))
        assert question is None or not any(a.name in question.text for a in hidden)


def test_a_count_needs_the_whole_episode_in_sight() -> None:
    episode = build(5)
    every = even_clip(episode, 48)
    assert every.seen == episode.appearances
    assert ask_clip(every, "count", random.Random(0)) is not None
    some = Clip(episode=episode, times_s=every.times_s[:4])
    assert ask_clip(some, "count", random.Random(0)) is None


@few
@given(seeds)
def test_drawn_questions_differ_and_follow_the_seed(seed: int) -> None:
    clip = even_clip(build(seed), 12)
    drawn = draw_questions(clip, ("needle", "order", "detail"), 4, random.Random(seed))
    assert 1 <= len(drawn) <= 4 and len({question.text for question in drawn}) == len(drawn)
    assert drawn == draw_questions(clip, ("needle", "order", "detail"), 4, random.Random(seed))
