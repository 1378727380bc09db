"""Reading an option out of free text: what counts, what does not, and that nothing is guessed."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.evaluation.local.choice import Choice, letter, read_choice, right_option

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


@pytest.mark.parametrize(
    ("answer", "option", "rule"),
    [
        ("The answer is a dog.", "B", "text inside"),
        ("To answer a question like this: dog", "B", "text inside"),
        ("The man made a choice a bit later: the dog", "B", "text inside"),
        ("The answer is A dog", "B", "text inside"),
        ("A dog runs", "B", "text inside"),
        ("I see a dog", "B", "text inside"),
        ("B\nThe video does not show a cat.", "B", "letter"),
        ("B because he is not the cat: a cat", "B", "letter"),
        ("B - a dog", "B", "letter"),
        ("(B)", "B", "letter"),
        ("B.", "B", "letter"),
        ("B) a dog", "B", "letter"),
        ("B, a dog", "B", "letter"),
        ("B, I think", "B", "letter"),
        ("**B**", "B", "letter"),
        ("B: a dog", "B", "letter"),
        ("Answer: B", "B", "stated"),
        ("Option B", "B", "stated"),
        ("The correct answer is (C) a horse", "C", "stated"),
        ("The answer is **C**.", "C", "stated"),
        ("The answer is A\nThe dog sleeps", "A", "stated"),
        ("Answer: a", "A", "stated"),
        ("A. a cat\nB. a dog\nThe answer is B.", "B", "stated"),
        ("A is correct, not B.", "A", "lone letter"),
        ("I choose A", "A", "lone letter"),
        ("I choose B", "B", "lone letter"),
    ],
)
def test_articles_pronouns_and_further_words_hide_no_letter(answer: str, option: str, rule: str) -> None:
    read = read_choice(answer, ["a cat", "a dog", "a horse", "a bird"])
    assert (read.option is not None and letter(read.option), read.rule) == (option, rule)


@pytest.mark.parametrize(
    "answer",
    [
        "Both A and B",
        "A or C",
        "A/B",
        "A, B and C",
        "a, b and c",
        "Options: A, B",
        "A\nB",
        "A. a cat\nB. a dog\nC. a horse",
        "The answer is A or B",
        "The answer is B. Option A is a cat.",
        "B\nA: a cat is not shown",
        "B The video does not show a cat",
        "A rather than B",
        "It is not B",
        "A man runs",
    ],
)
def test_several_letters_or_a_letter_against_a_text_are_unparsed(answer: str) -> None:
    assert read_choice(answer, ["a cat", "a dog", "a horse", "a bird"]) == Choice(None, None)


@pytest.mark.parametrize("options", [["A", "B", "C", "D"], ["+", "one", "two"]])
@pytest.mark.parametrize("answer", ["", ".", "The"])
def test_an_answer_of_no_words_is_not_the_option_of_no_words(answer: str, options: list[str]) -> None:
    assert read_choice(answer, options) == Choice(None, None)


def test_an_option_of_signs_alone_is_named_by_them() -> None:
    assert read_choice("+", ["-", "+", "two"]) == Choice(1, "text")


@pytest.mark.parametrize(("truth", "option"), [("B", 1), ("c", 2), (" A ", 0), ("a red car", 2), ("a cat on a mat", 3)])
def test_a_right_answer_is_a_letter_or_a_text(truth: str, option: int) -> None:
    assert right_option(truth, ANIMALS) == option


@pytest.mark.parametrize(
    ("truth", "options"),
    [
        ("C", ["cat", "dog"]),
        ("The answer is a dog", ["a cat", "a dog"]),
        ("A cat.", ["a cat", "a dog"]),
        ("dog", ["dog", "dog"]),
        ("B", ["B", "A"]),
    ],
)
def test_a_right_answer_is_not_guessed(truth: str, options: list[str]) -> None:
    with pytest.raises(UserError, match=f"the right answer '{truth}' is not the letter of one of the 2 options, nor"):
        right_option(truth, options)


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
