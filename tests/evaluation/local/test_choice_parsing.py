"""Reading an option out of free text: what counts, what does not, and that nothing is guessed."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.evaluation.local.choice import Choice, read_choice

ANIMALS = ["a dog", "a cat", "a red car", "a cat on a mat"]


@pytest.mark.parametrize(
    ("answer", "option", "rule"),
    [
        ("B", 1, "letter"),
        ("b", 1, "letter"),
        (" (C) ", 2, "letter"),
        ("D.", 3, "letter"),
        ("B. a cat", 1, "letter"),
        ("**C**", 2, "letter"),
        ("A: because it barks", 0, "letter"),
        ("The answer is (B).", 1, "stated"),
        ("The correct answer is D", 3, "stated"),
        ("I choose option c", 2, "stated"),
        ("Answer: A", 0, "stated"),
        ("A cat.", 1, "text"),
        ("the red car", 2, "text"),
        ("It shows a red car on a road", 2, "text inside"),
        ("There is a cat on a mat.", 3, "text inside"),
        ("I think it must be C here", 2, "lone letter"),
    ],
)
def test_answers_that_name_one_option(answer: str, option: int, rule: str) -> None:
    assert read_choice(answer, ANIMALS) == Choice(option, rule)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A horse",
        "E",
        "I do not know",
        "either B or C",
        "a dog and a red car",
        "The answer is that nobody knows",
        "concatenate",
        "B'day",
    ],
)
def test_answers_that_name_none_or_several_are_unparsed(answer: str) -> None:
    assert read_choice(answer, ANIMALS) == Choice(None, None)


@given(
    count=st.integers(2, 26),
    place=st.integers(0, 25),
    shape=st.sampled_from(
        ["{}", "({})", "{}.", "{})", "[{}]", "{}:", "The answer is {}.", "Option {}", "Answer: ({})"]
    ),
    lower=st.booleans(),
)
def test_a_letter_in_any_usual_dress_is_that_option_or_none(count: int, place: int, shape: str, lower: bool) -> None:
    letter = string.ascii_lowercase[place] if lower else string.ascii_uppercase[place]
    options = [f"thing number {1000 + number}" for number in range(count)]
    read = read_choice(shape.format(letter), options)
    assert read.option == (place if place < count else None)


@given(
    st.lists(st.from_regex(r"[a-z]{3,8}( [a-z]{3,8})?", fullmatch=True), min_size=2, max_size=6, unique=True), st.data()
)
def test_the_text_of_an_option_is_that_option(options: list[str], data: st.DataObject) -> None:
    wanted = data.draw(st.integers(0, len(options) - 1))
    read = read_choice(options[wanted].capitalize() + ".", options)
    if read.rule == "text":
        assert read.option == wanted
    else:  # words such as "the" are no content, so several options may be the same
        assert read.option is None or read.rule in ("stated", "text inside")
