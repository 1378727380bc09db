"""Rows that cannot be scored or written are refused when a manifest is read, by file and line."""

from pathlib import Path
from typing import Any

import pytest

from longvid_train.errors import UserError
from longvid_train.evaluation.local.questions import Question, read_questions
from tests.evaluation.local.conftest import row, write_rows


def questions(folder: Path, *rows: dict[str, Any]) -> list[Question]:
    return read_questions([str(write_rows(folder, list(rows)))])[1]


def choice(number: int, truth: str | None, options: list[str]) -> dict[str, Any]:
    return row(number, "a", "Which?", truth, kind="multiple_choice", options=options)


@pytest.mark.parametrize("truth", ["B", "b", "a dog", None])
def test_right_answers_of_multiple_choice(tmp_path: Path, truth: str | None) -> None:
    (one,) = questions(tmp_path, choice(0, truth, ["a cat", "a dog"]))
    assert (one.truth, one.options) == (truth, ("a cat", "a dog"))


@pytest.mark.parametrize(
    ("truth", "options"),
    [("C", ["cat", "dog"]), ("the dog", ["dog", "dog"]), ("The answer is a dog", ["a cat", "a dog"])],
)
def test_a_right_answer_that_is_no_option_is_refused(tmp_path: Path, truth: str, options: list[str]) -> None:
    said = rf"manifest\.jsonl:2: row 'q1' is multiple choice, but the right answer '{truth}' is not the letter"
    with pytest.raises(UserError, match=said):
        questions(tmp_path, choice(0, "A", ["a cat", "a dog"]), choice(1, truth, options))


@pytest.mark.parametrize("count", [1, 27])
def test_too_few_and_too_many_options_are_refused(tmp_path: Path, count: int) -> None:
    options = [f"thing {number}" for number in range(count)]
    with pytest.raises(UserError, match=r"manifest\.jsonl:1: row 'q0' .* meta\.options is no list of 2 to 26 texts"):
        questions(tmp_path, choice(0, None, options))


def test_26_options_are_asked(tmp_path: Path) -> None:
    (one,) = questions(tmp_path, choice(0, "Z", [f"thing {number}" for number in range(26)]))
    assert len(one.options) == 26


def test_half_a_character_is_refused_before_it_is_asked_about(tmp_path: Path) -> None:
    broken = row(1, "a", "What?", "red", kind="open", note="\ud83d")
    with pytest.raises(UserError, match=r"manifest\.jsonl:2: row 'q1' cannot be written .*; write whole characters"):
        questions(tmp_path, row(0, "a", "What?", "red", kind="open"), broken)


def test_subtitles_that_are_not_shown_need_not_exist(tmp_path: Path) -> None:
    told = row(0, "a", "What?", "red", kind="open")
    told["media"][0]["subtitles"] = "a.srt"
    (tmp_path / "a.mp4").touch()
    (one,) = questions(tmp_path, told)
    assert one.missing_file(subtitles=False) is None
    assert one.missing_file(subtitles=True) == tmp_path / "a.srt"
