"""Scores of answers: exact for short ones, ordered words for sentences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.generate.scoring import content_words, normalise, ordered_word_score, score_answer

WORDS = st.lists(st.sampled_from(["red", "blue", "circle", "star", "7"]), max_size=6)


@pytest.mark.parametrize(
    ("text", "expected"), [("The  Red-circle.", "red circle"), (" A\n7! ", "7"), ("an", ""), ("theatre", "theatre")]
)
def test_normalise_drops_case_punctuation_spaces_and_articles(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_short_answers_are_all_or_nothing() -> None:
    assert score_answer("The red.", "red", "needle") == 1.0
    assert score_answer("red circle", "red", "needle") == 0.0
    assert score_answer("", "red", "needle") == 0.0


def test_sentences_count_content_words_in_order() -> None:
    truth = "in the forest: red circle 7, blue star 2"
    assert content_words(truth) == ["forest", "red", "circle", "7", "blue", "star", "2"]
    assert score_answer("In a forest: red circle 7, blue star 2.", truth, "description") == 1.0
    assert ordered_word_score("forest red circle 7", truth) == pytest.approx(4 / 7)
    assert ordered_word_score("blue star 2 red circle 7", "red circle 7 blue star 2") == pytest.approx(3 / 6)
    assert ordered_word_score("the in a of", truth) == 0.0


def test_naming_every_word_earns_little() -> None:
    flood = " ".join(["red", "blue", "green", "yellow"] * 10)
    assert ordered_word_score(flood, "red blue") == pytest.approx(2 / 40)


@given(WORDS, WORDS)
def test_ordered_score_is_symmetric_bounded_and_one_only_for_equal_words(left: list[str], right: list[str]) -> None:
    one, other = " ".join(left), " ".join(right)
    score = ordered_word_score(one, other)
    assert score == ordered_word_score(other, one)
    assert 0 <= score <= 1
    assert (score == 1) == (left == right)
