"""Texts cut to size, questions shared out, and replies parsed strictly."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.teaching.parts import share_out, split_text
from data_prep.teaching.prompts import prompt_digest, question_about
from data_prep.teaching.replies import Pair, Summaries, notes_parser, pairs_parser, parse_summaries
from longvid_train.endpoint import OffFormatError

PAIR = {"question": "Who opens the door?", "answer": "Ann does."}


@given(text=st.text("INT.EXab \n", max_size=300), most=st.integers(1, 60))
@settings(deadline=None)
def test_parts_joined_are_the_text_and_each_fits(text: str, most: int) -> None:
    parts = split_text(text, most)
    assert "".join(parts) == text
    assert all(len(part) <= most for part in parts)
    assert all(len(part) + len(following) > most for part, following in pairwise(parts))


def test_a_script_is_cut_before_scene_headings_first() -> None:
    scenes = [f"{heading} - DAY\n\nSomething happens.\n\n" for heading in ("INT. CABIN", "12 EXT. DECK", "I/E. CAR")]
    assert split_text("".join(scenes), 50) == scenes
    assert split_text("".join(scenes), 10_000) == ["".join(scenes)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one two\n\nthree four\n", ["one two\n", "\nthree four\n"]),
        ("one two\nthree four\n", ["one two\n", "three four\n"]),
        ("one two three four", ["one two ", "three four"]),
        ("x" * 25, ["x" * 12, "x" * 12, "x"]),
    ],
)
def test_the_best_seam_that_serves_is_taken(text: str, parts: list[str]) -> None:
    assert split_text(text, 12) == parts


@given(count=st.integers(0, 20), sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=12))
def test_shares_add_up_and_follow_the_sizes(count: int, sizes: list[int]) -> None:
    shares = share_out(count, sizes)
    assert sum(shares) == count
    for share, size in zip(shares, sizes, strict=True):
        assert abs(share - count * size / sum(sizes)) < 1


def test_larger_parts_get_more_and_the_earlier_of_equals() -> None:
    assert share_out(5, [100, 100, 100]) == [2, 2, 1]
    assert share_out(5, [10, 1000, 10]) == [0, 5, 0]


def test_prompts_fill_their_blanks_and_leave_the_text_alone() -> None:
    [message] = question_about("detail", "A text with {count} in it.", count=3)
    assert "Write 3 questions" in message.content
    assert message.content.endswith("============\nA text with {count} in it.\n============")
    assert '{"pairs": [{"question"' in message.content


def test_the_digest_tells_wordings_apart() -> None:
    assert len(prompt_digest("detail")) == 12
    assert len({prompt_digest(name) for name in ("summary", "plot_character", "reasoning", "detail", "condense")}) == 5


def test_summaries_are_one_paragraph_and_a_longer_text() -> None:
    value = {"brief": " Short. ", "detailed": "Long.\n\nVery long."}
    assert parse_summaries(json.dumps(value)) == Summaries("Short.", "Long.\n\nVery long.")
    assert parse_summaries(f"```json\n{json.dumps(value)}\n```") == Summaries("Short.", "Long.\n\nVery long.")


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        ("Here you are: {}", "not one JSON object"),
        ('{"brief": "a", "detailed": "abc"} Anything else?', "not one JSON object"),
        ("[]", "exactly the keys brief, detailed"),
        ('{"brief": "a"}', "exactly the keys"),
        ('{"brief": "a", "detailed": "abc", "more": 1}', "exactly the keys"),
        ('{"brief": "a\\n\\nb", "detailed": "abcdefg"}', "one paragraph"),
        ('{"brief": "abc", "detailed": "abc"}', "longer"),
        ('{"brief": " ", "detailed": "abc"}', "something in it"),
        ('{"brief": 3, "detailed": "abc"}', "something in it"),
        ('{"brief": "The synopsis tells", "detailed": "a much longer text"}', "never mention"),
        ('{"brief": "a", "detailed": "<video> of a door"}', "must not hold"),
        ("[" * 100_000, "not one JSON object"),
    ],
)
def test_summaries_off_format_are_told_what_to_write(reply: str, rule: str) -> None:
    with pytest.raises(OffFormatError, match=rule):
        parse_summaries(reply)


def test_pairs_come_by_name_in_the_order_asked_for() -> None:
    other = {"question": "Why?", "answer": "So."}
    reply = json.dumps({"character": [other], "plot": [PAIR]})
    assert pairs_parser(1, "plot", "character")(reply) == (
        (Pair("Who opens the door?", "Ann does."),),
        (Pair("Why?", "So."),),
    )


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ({"pairs": [PAIR]}, "an array of 2 pairs, not of 1"),
        ({"pairs": "x"}, "an array of 2 pairs, not of no"),
        ({"pairs": [PAIR, {"question": "Why?"}]}, r"pairs\[1\]"),
        ({"pairs": [PAIR, {**PAIR, "score": 1}]}, r"pairs\[1\]"),
        ({"pairs": [PAIR, {"question": "Why?", "answer": ""}]}, r"pairs\[1\].answer"),
        ({"pairs": [PAIR, {**PAIR, "question": "WHO opens the door?"}]}, "stands twice"),
        ({"pairs": [PAIR, {"question": "What does the script say?", "answer": "In the script, no."}]}, "never mention"),
    ],
)
def test_pairs_off_format_are_told_what_to_write(value: Any, rule: str) -> None:
    with pytest.raises(OffFormatError, match=rule):
        pairs_parser(2, "pairs")(json.dumps(value))


def test_a_movie_about_a_script_may_be_asked_about() -> None:
    value = {"pairs": [{"question": "Who writes the script of the play?", "answer": "Ann writes her script at night."}]}
    assert len(pairs_parser(1, "pairs")(json.dumps(value))[0]) == 1


def test_notes_are_held_to_their_length() -> None:
    assert notes_parser(5)('{"notes": " abcde "}') == "abcde"
    with pytest.raises(OffFormatError, match="has 6 characters; 5 are allowed"):
        notes_parser(5)('{"notes": "abcdef"}')
