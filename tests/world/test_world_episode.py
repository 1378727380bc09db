import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.world.episode import (
    CODE_WORDS,
    SLIDE_S,
    Episode,
    WorldSettings,
    events_digest,
    make_episode,
)

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)
durations_s = st.floats(2.0, 90.0)
overlaps = st.sampled_from([0.0, 0.25, 0.9, 1.0])


def build(seed: int, duration_s: float, overlap: float, subtitles: bool = False) -> Episode:
    world = WorldSettings(duration_s=duration_s, overlap=overlap, subtitles=subtitles)
    return make_episode(world, split="train", seed=seed, index=seed % 7)


@few
@given(seeds, durations_s, overlaps)
def test_every_object_is_fully_visible_on_a_whole_second(seed: int, duration_s: float, overlap: float) -> None:
    episode = build(seed, duration_s, overlap)
    assert episode.appearances
    seen = {a for second in range(int(duration_s) + 1) for a in episode.visible_at(float(second))}
    assert seen == set(episode.appearances)


@few
@given(seeds, durations_s, overlaps)
def test_at_most_two_objects_share_the_screen_and_never_a_half(seed: int, duration_s: float, overlap: float) -> None:
    episode = build(seed, duration_s, overlap)
    for one in episode.appearances:
        sharing = [
            other
            for other in episode.appearances
            if other.enter_s - SLIDE_S < one.leave_s + SLIDE_S - 1e-9
            and one.enter_s - SLIDE_S < other.leave_s + SLIDE_S - 1e-9
        ]
        halves = [other.start_xy[0] < 0.5 for other in sharing if other is not one]
        assert (one.start_xy[0] < 0.5) not in halves
    for tenth in range(int(duration_s * 10)):
        assert len(episode.sliding_or_visible_at(tenth / 10)) <= 2


@few
@given(seeds, durations_s, overlaps)
def test_objects_stay_in_their_half(seed: int, duration_s: float, overlap: float) -> None:
    for a in build(seed, duration_s, overlap).appearances:
        for x, y in (a.start_xy, a.end_xy):
            low, high = (0.0, 0.5) if a.start_xy[0] < 0.5 else (0.5, 1.0)
            assert x - a.size / 2 >= low - 1e-9
            assert x + a.size / 2 <= high + 1e-9
            assert y - a.size / 2 >= 0.0
            assert y + a.size / 2 <= 1.0


@few
@given(seeds, durations_s, overlaps)
def test_scenes_cover_the_episode_and_change_only_between_objects(seed: int, duration_s: float, overlap: float) -> None:
    episode = build(seed, duration_s, overlap)
    assert episode.scenes[0].start_s == 0.0
    assert episode.scenes[-1].end_s == duration_s
    for before, after in zip(episode.scenes[:-1], episode.scenes[1:], strict=True):
        assert before.end_s == after.start_s
        assert before.name != after.name
        assert all(not a.enter_s < after.start_s < a.leave_s for a in episode.appearances)


@few
@given(seeds, durations_s)
def test_a_word_is_spoken_only_with_an_object_alone_on_screen(seed: int, duration_s: float) -> None:
    episode = build(seed, duration_s, 0.5, subtitles=True)
    for line in episode.subtitles:
        there = [a for a in episode.appearances if a.enter_s < line.end_s and a.leave_s > line.start_s]
        assert len(there) == 1
        assert line.text.removeprefix("the word is ") in CODE_WORDS


@few
@given(seeds)
def test_a_cut_falls_on_a_scene_by_its_start(seed: int) -> None:
    episode = build(seed, 30.0, 0.25)
    for scene in episode.scenes:
        assert episode.scene_at(scene.start_s) == scene
        assert episode.scene_at((scene.start_s + scene.end_s) / 2) == scene


def test_episodes_repeat_by_seed_and_differ_by_split_seed_and_index() -> None:
    world = WorldSettings(duration_s=8.0, subtitles=True)
    assert make_episode(world, split="train", seed=1, index=2) == make_episode(world, split="train", seed=1, index=2)
    digests = [
        events_digest(make_episode(world, split=split, seed=seed, index=index))
        for split in ("train", "val", "test")
        for seed in range(3)
        for index in range(100)
    ]
    assert len(set(digests)) == 900


def test_the_digest_ignores_the_name_and_sees_the_events() -> None:
    episode = make_episode(WorldSettings(), split="train", seed=0, index=0)
    renamed = dataclasses.replace(episode, episode_id="val-0-000000", split="val")
    assert events_digest(renamed) == events_digest(episode)
    assert events_digest(dataclasses.replace(episode, appearances=())) != events_digest(episode)


@pytest.mark.parametrize(
    "wrong", [{"duration_s": 0.5}, {"on_screen_s": (0.0, 1.0)}, {"on_screen_s": (2.0, 1.0)}, {"overlap": 1.5}]
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        WorldSettings(**wrong)
