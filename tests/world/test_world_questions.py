"""Answers are worked out again here from the raw event list, second by second, not with the package's own helpers."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.world.episode import Episode, WorldSettings, make_episode
from longvid_train.world.questions import QUESTION_KINDS, ask, caption, frame_caption, speech

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def build(seed: int, duration_s: float = 20.0) -> Episode:
    return make_episode(WorldSettings(duration_s=duration_s, subtitles=True), split="val", seed=seed, index=0)


def the_one(episode: Episode, name: str) -> int:
    """Index of the only object of that name."""
    found = [i for i, a in enumerate(episode.appearances) if f"{a.colour} {a.shape}" == name]
    assert len(found) == 1
    return found[0]


def scene_on(episode: Episode, time_s: float) -> str:
    return next(scene.name for scene in reversed(episode.scenes) if scene.start_s <= time_s < scene.end_s)


@few
@given(seeds)
def test_needle(seed: int) -> None:
    episode = build(seed)
    question = ask(episode, "needle", random.Random(seed))
    assert question is not None
    name = re.fullmatch(r"In which scene did the (\w+ \w+) appear\?", question.text)
    assert name is not None
    found = episode.appearances[the_one(episode, name[1])]
    for time_s in (found.enter_s, (found.enter_s + found.leave_s) / 2, found.leave_s - 0.001):
        assert question.answer == scene_on(episode, time_s)
    assert question.evidence_s == (found.enter_s, found.leave_s)


@few
@given(seeds)
def test_order(seed: int) -> None:
    episode = build(seed)
    question = ask(episode, "order", random.Random(seed))
    assert question is not None
    name = re.fullmatch(r"What came right after the (\w+ \w+)\?", question.text)
    assert name is not None
    first = episode.appearances[the_one(episode, name[1])]
    later = [a for a in episode.appearances if a.enter_s > first.enter_s]
    second = min(later, key=lambda a: a.enter_s)
    assert question.answer == f"{second.colour} {second.shape}"


@few
@given(seeds)
def test_count(seed: int) -> None:
    episode = build(seed)
    question = ask(episode, "count", random.Random(seed))
    assert question is not None
    shape = re.fullmatch(r"How many times did a (\w+) appear\?", question.text)
    assert shape is not None
    entries = 0
    before: set[object] = set()
    for hundredth in range(int(episode.duration_s * 100)):
        time_s = hundredth / 100
        now = {a for a in episode.appearances if a.shape == shape[1] and a.enter_s <= time_s < a.leave_s}
        entries += len(now - before)
        before = now
    assert question.answer == str(entries)


@few
@given(seeds)
def test_detail(seed: int) -> None:
    episode = build(seed)
    question = ask(episode, "detail", random.Random(seed))
    assert question is not None
    name = re.fullmatch(r"Which digit does the (\w+ \w+) carry\?", question.text)
    assert name is not None
    assert question.answer == episode.appearances[the_one(episode, name[1])].digit


@few
@given(seeds)
def test_subtitle(seed: int) -> None:
    episode = build(seed)
    question = ask(episode, "subtitle", random.Random(seed))
    if question is None:
        return
    name = re.fullmatch(r"Which word was said when the (\w+ \w+) was there\?", question.text)
    assert name is not None
    found = episode.appearances[the_one(episode, name[1])]
    said = [line.text for line in episode.subtitles if line.start_s < found.leave_s and line.end_s > found.enter_s]
    assert said == [f"the word is {question.answer}"]


@few
@given(seeds)
def test_speech_lists_every_subtitle_with_the_object_it_starts_with(seed: int) -> None:
    episode = build(seed)
    said = [line.rsplit(" ", 1) for line in speech(episode).split(", ") if line]
    entered = {a.enter_s: a.name for a in episode.appearances}
    assert said == [[entered[line.start_s], line.text.split()[-1]] for line in episode.subtitles]


def test_subtitle_questions_are_found_in_most_episodes() -> None:
    found = [ask(build(seed), "subtitle", random.Random(seed)) for seed in range(50)]
    assert sum(question is not None for question in found) >= 40


@few
@given(seeds)
def test_caption_tells_every_object_once_in_order(seed: int) -> None:
    episode = build(seed)
    told = re.findall(r"(\w+) (\w+) (\d)", caption(episode))
    assert told == [(a.colour, a.shape, a.digit) for a in sorted(episode.appearances, key=lambda a: a.enter_s)]
    assert re.findall(r"in the (\w+):", caption(episode)) == [scene.name for scene in episode.scenes]


@few
@given(seeds)
def test_caption_of_a_stretch_is_about_that_stretch(seed: int) -> None:
    episode = build(seed)
    digits = re.findall(r"\d", caption(episode, 5.0, 12.0))
    assert digits == [a.digit for a in episode.appearances if 5.0 <= a.enter_s < 12.0]


@few
@given(seeds, st.floats(0, 19.9))
def test_frame_caption(seed: int, time_s: float) -> None:
    episode = build(seed)
    told = frame_caption(episode, time_s)
    assert told.startswith(f"in the {scene_on(episode, time_s)}: ")
    there = [f"{a.colour} {a.shape} {a.digit}" for a in episode.appearances if a.enter_s <= time_s < a.leave_s]
    assert told.split(": ")[1] == (", ".join(there) or "nothing")


def test_description_is_the_caption_and_only_of_quiet_episodes() -> None:
    quiet, busy = build(1, 8.0), build(1, 60.0)
    question = ask(quiet, "description", random.Random(0))
    assert question is not None
    assert question.answer == caption(quiet)
    assert ask(busy, "description", random.Random(0)) is None


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'needle'"):
        ask(build(0), "neddle", random.Random(0))
    assert set(QUESTION_KINDS) == {"needle", "order", "count", "detail", "description", "subtitle"}
