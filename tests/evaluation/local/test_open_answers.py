"""Short open answers as the VQA evaluation compares them."""

import pytest

from longvid_train.evaluation.local.open_answer import contains, matches, vqa_normalise


@pytest.mark.parametrize(
    ("answer", "truth"),
    [("A dog.", "dog"), ("Two", "2"), ("none", "0"), ("Don't", "dont"), ("ice-cream", "ice cream"), ("  RED ", "red")],
)
def test_the_same_after_normalising(answer: str, truth: str) -> None:
    assert matches(answer, truth) and contains(answer, truth)


@pytest.mark.parametrize(("answer", "truth"), [("dogs", "dog"), ("red car", "red"), ("", "red"), ("twenty", "20")])
def test_other_words_are_no_match(answer: str, truth: str) -> None:
    assert not matches(answer, truth)


def test_containing_is_by_whole_words_in_a_row() -> None:
    assert contains("The man rides a horse.", "horse")
    assert contains("There are three dogs", "3 dogs")
    assert not contains("a seahorse swims", "horse")
    assert not contains("red, then a big car", "red car")
    assert not contains("anything", "")


def test_number_words_become_digits() -> None:
    assert vqa_normalise("The seven dwarfs and one apple") == "7 dwarfs and 1 apple"
