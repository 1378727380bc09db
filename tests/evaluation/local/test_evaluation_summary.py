"""Scores by kind of question, and metrics over them."""

from dataclasses import replace
from typing import Any

import pytest

from longvid_train.errors import UserError
from longvid_train.evaluation.local.predictions import LeftOut, Prediction
from longvid_train.evaluation.local.scores import score_prediction
from longvid_train.evaluation.local.summary import Row, Summary, duration_label, summarise
from longvid_train.evaluation.local.tables import summary_table

BASE = Prediction(
    id="q",
    manifest="m",
    place=(0, 0, 0),
    kind="open",
    question="What?",
    options=(),
    truth="red",
    answer="red",
    meta={},
    video="v",
    duration_s=10.0,
    frames=8,
    visual_tokens=33,
    prompt_tokens=50,
    new_tokens=4,
    scale=1.0,
    batch=2,
    generate_s=1.0,
)
CHOICE = replace(BASE, kind="multiple_choice", options=("a dog", "a cat"), truth="B")


def made(*predictions: Prediction) -> list[Row]:
    numbered = [replace(one, id=f"q{number}") for number, one in enumerate(predictions)]
    return [Row(prediction=one, score=score_prediction(one)) for one in numbered]


@pytest.mark.parametrize(
    ("changes", "metric", "score"),
    [
        ({"answer": "The red."}, "vqa_match", 1.0),
        ({"answer": "a red car"}, "vqa_match", 0.0),
        ({"kind": "count", "truth": "2", "answer": "two"}, "match", 0.0),
        ({"kind": "caption", "truth": "in the sea: red ring", "answer": "in the sea: red star"}, "word_order", 2 / 3),
        ({"truth": None}, "vqa_match", None),
    ],
)
def test_each_kind_has_its_rule(changes: dict[str, Any], metric: str, score: float | None) -> None:
    found = score_prediction(replace(BASE, **changes))
    assert (found.metric, found.score) == (metric, score)


def test_a_choice_is_scored_by_its_letter_or_its_text_and_unparsed_is_said() -> None:
    right, wrong, none = (score_prediction(replace(CHOICE, answer=said)) for said in ("A cat.", "A", "a horse"))
    assert (right.score, right.chosen, right.rule) == (1.0, "B", "text")
    assert (wrong.score, wrong.chosen, wrong.unparsed) == (0.0, "A", False)
    assert (none.score, none.chosen, none.unparsed) == (0.0, None, True)


def test_a_right_answer_that_is_no_option_is_not_taken_for_none() -> None:
    with pytest.raises(UserError, match="question 'q' of m: the right answer 'C' is not the letter of one of the 2"):
        score_prediction(replace(CHOICE, truth="C"))


def a_summary() -> Summary:
    rows = made(
        replace(BASE, meta={"task_type": "object"}, video="v1"),
        replace(BASE, answer="a red car", meta={"task_type": "object"}, video="v1", duration_s=15.0),
        replace(CHOICE, answer="B", meta={"task_type": "action"}, video="v2", duration_s=61.0),
        replace(CHOICE, answer="dunno", meta={"task_type": "action"}, video="v2", duration_s=15.5),
        replace(BASE, truth=None),
    )
    left = [LeftOut(id="gone", manifest="m", reason="no such file")]
    return summarise(rows, questions=7, left_out=left, duration_edges_s=(15.0, 60.0))


def test_metrics_count_everything_once() -> None:
    values = a_summary().values()
    assert (values["questions"], values["answered"], values["left_out"], values["without_truth"]) == (7, 5, 1, 1)
    assert values["left_out_ids"] == ["gone"]
    overall = values["overall"]
    assert (overall["n"], overall["mean"], overall["unparsed"]) == (4, 0.5, 1)
    assert overall["parsed_score"] == pytest.approx(2 / 3)
    assert overall["contained"] == 1.0
    assert set(values["by"]) == {"kind", "task_type", "video length"}
    tasks = values["by"]["task_type"]
    assert {name: group["n"] for name, group in tasks["groups"].items()} == {"action": 2, "object": 2}
    lengths = values["by"]["video length"]["groups"]
    assert {name: (one["n"], one["mean"]) for name, one in lengths.items()} == {
        "up to 15 s": (2, 0.5),
        "(15, 60] s": (1, 0.0),
        "over 60 s": (1, 1.0),
    }
    assert list(lengths) == ["up to 15 s", "(15, 60] s", "over 60 s"]
    assert values["by"]["video length"]["macro"] == pytest.approx(0.5)
    assert values["cost"]["visual_tokens"] == 33
    assert values["cost"]["new_tokens_per_s"] == pytest.approx(4 * 5 / (5 * 0.5))


def test_the_macro_mean_weighs_groups_alike() -> None:
    rows = made(*[replace(BASE, meta={"task": "count"})] * 3, replace(BASE, answer="no", meta={"task": "order"}))
    (by_task,) = (one for one in summarise(rows, questions=4).breakdowns if one.name == "task")
    assert by_task.macro == pytest.approx(0.5)


def test_the_table_says_what_is_in_no_score() -> None:
    table = summary_table(a_summary())
    assert (
        "5 of 7 questions answered; 1 left out and in no score (gone); 1 without a right answer, in no score" in table
    )
    assert "| action | 2 | 50.0 |" in table
    assert "| all | 4 | 50.0 | 50.0 to 50.0 | 100.0 | 1 | 66.7 |" in table  # both videos have one right of two
    assert "Mean of the 3 groups: 50.0" in table


def test_a_category_nobody_has_is_refused_with_the_nearest() -> None:
    rows = made(replace(BASE, meta={"task_type": "a"}))
    with pytest.raises(UserError, match="no row has the category 'task_typ'; did you mean 'task_type'"):
        summarise(rows, questions=1, categories=("task_typ",))


def test_nothing_scored_is_no_score_of_zero() -> None:
    summary = summarise(made(replace(BASE, truth=None)), questions=1)
    assert summary.overall is None and summary.breakdowns == ()
    assert "score" not in summary_table(summary).replace("in no score", "")


@pytest.mark.parametrize(
    ("duration_s", "label"), [(8.0, "up to 8 s"), (8.1, "(8, 15] s"), (15.0, "(8, 15] s"), (99.0, "over 15 s")]
)
def test_groups_by_length_are_closed_above(duration_s: float, label: str) -> None:
    assert duration_label(duration_s, (8.0, 15.0)) == label
