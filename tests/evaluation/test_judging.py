"""A judge behind a local server that also misbehaves: strict replies, unjudged rows counted, nothing asked twice."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from longvid_train.cli import main
from longvid_train.endpoint import EndpointSettings, OffFormatError
from longvid_train.errors import UserError
from longvid_train.evaluation.judging.judge import judge_folder
from longvid_train.evaluation.judging.rubric import PROMPTS, RUBRICS, Rubric, Verdict
from longvid_train.evaluation.judging.settings import JudgeSettings
from longvid_train.evaluation.local.identity import VERSION
from longvid_train.evaluation.local.predictions import LineLog, Prediction
from tests.endpoint.local_endpoint import LocalEndpoint, Misbehaviour, Request, serve

ONE = Prediction(
    id="q0",
    manifest="m",
    place=(0, 0, 0),
    kind="open",
    question="<video>\nWhat is it?",
    options=(),
    truth="red",
    answer="a red ring",
    meta={},
    video="v0",
    duration_s=8.0,
    frames=8,
    visual_tokens=33,
    prompt_tokens=50,
    new_tokens=4,
    scale=1.0,
    batch=1,
    generate_s=1.0,
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalEndpoint]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve(LocalEndpoint()) as running:
        yield running


def written_record(out: Path, limit: int | None = None) -> None:
    asked = {"questions": 5, "limit": limit, "categories": [], "duration_edges_s": []}
    out.mkdir(exist_ok=True)
    record = {"version": VERSION, "identity": {}, "asked": asked, "starts": []}
    (out / "evaluation.json").write_text(json.dumps(record))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    written_record(folder)
    answers = ["a red ring", "green", "no idea", "blue"]
    LineLog(folder / "predictions.jsonl").append(
        replace(ONE, id=f"q{number}", place=(0, number, 0), answer=said, video=f"v{number // 2}")
        for number, said in enumerate(answers)
    )
    LineLog(folder / "predictions.jsonl").append([replace(ONE, id="q4", place=(0, 4, 0), truth=None)])
    return folder


def settings(server: LocalEndpoint, tmp_path: Path, *rubrics: str, **changes: Any) -> JudgeSettings:
    values: dict[str, Any] = {
        "api_key_env": "",
        "format_tries": 2,
        "max_attempts": 2,
        "max_wait_s": 0.01,
        "timeout_s": 20,
    }
    named = {"base_url": server.base_url, "model": "judge", "cache": str(tmp_path / "cache")}
    endpoint = EndpointSettings(**named | values | changes)
    return JudgeSettings(rubrics=rubrics, endpoint=endpoint)


def said_of(request: Request) -> str:
    prompt: str = request["messages"][0]["content"]
    return next(line for line in prompt.splitlines() if line.startswith("Model's answer: ")).removeprefix(
        "Model's answer: "
    )


def verdict(request: Request) -> str:
    correct, score = {"a red ring": ("yes", 5), "green": ("no", 0), "blue": ("no", 1)}.get(said_of(request), ("", 0))
    return json.dumps({"correct": correct, "score": score}) if correct else "Well, that is hard to say."


def test_accuracy_and_score_as_in_video_chatgpt(server: LocalEndpoint, out: Path, tmp_path: Path) -> None:
    server.answer = verdict
    (summary,) = judge_folder(out, settings(server, tmp_path, "accuracy"))
    assert summary.accuracy is not None and summary.score is not None
    assert (summary.judged, summary.accuracy.mean, summary.score.mean) == (3, pytest.approx(1 / 3), 2.0)
    assert summary.unjudged == {"off_format": ["q2"]} and summary.without_truth == 1
    assert summary.judges == ("teacher-2026-01",) and summary.version == RUBRICS["accuracy"].version
    table = summary.table()
    assert (
        "by judge, which calls itself teacher-2026-01: 3 answers; 1 unjudged and in no mean: off_format (q2;" in table
    )
    assert "the first: write one JSON object and nothing else" in table and "| accuracy, % | 3 | 33.33 |" in table
    rows = [json.loads(line) for line in (out / "judgements_accuracy.jsonl").read_text().splitlines()]
    assert [(row["id"], row["score"], row["correct"], row["tries"]) for row in rows] == [
        ("q0", 5, True, 1),
        ("q1", 0, False, 1),
        ("q2", None, None, 2),
        ("q3", 1, False, 1),
    ]
    prompt = server.requests[0]["messages"][0]["content"]
    assert (
        "Question: What is it?\nRight answer: red\n" in prompt and "<video>" not in prompt and "version" not in prompt
    )


def test_what_was_judged_is_not_asked_again_and_a_judge_that_is_down_loses_nothing(
    server: LocalEndpoint, out: Path, tmp_path: Path
) -> None:
    server.answer = lambda request: '{"score": 3}'
    server.misbehave.extend([Misbehaviour(), Misbehaviour(), *[Misbehaviour(status=503)] * 2])
    with pytest.raises(UserError, match="gave no reply in 2 attempts"):
        judge_folder(out, settings(server, tmp_path, "detail", concurrency=1))
    assert not (out / "judge_detail.json").exists()
    (summary,) = judge_folder(out, settings(server, tmp_path, "detail", concurrency=1))
    assert summary.judged == 4
    assert Counter(map(said_of, server.requests)) == {"a red ring": 1, "green": 1, "no idea": 3, "blue": 1}
    judge_folder(out, settings(server, tmp_path, "detail"))
    assert len(server.requests) == 6


def test_a_passing_failure_is_tried_again(server: LocalEndpoint, out: Path, tmp_path: Path) -> None:
    server.answer = lambda request: '{"score": 4}'
    server.misbehave.append(Misbehaviour(status=429))
    first, second = judge_folder(out, settings(server, tmp_path, "correctness", "context", concurrency=1))
    assert (first.rubric, second.rubric, first.judged, second.judged) == ("correctness", "context", 4, 4)
    assert len(server.requests) == 1 + 4 + 4


def test_a_pair_is_one_request_with_both_answers(server: LocalEndpoint, tmp_path: Path) -> None:
    written_record(tmp_path / "out")
    log = LineLog(tmp_path / "out/predictions.jsonl")
    log.append([replace(ONE, meta={"pair": 1}), replace(ONE, id="q1", answer="a red one", meta={"pair": 1})])
    server.answer = lambda request: '{"score": 5}'
    (summary,) = judge_folder(tmp_path / "out", settings(server, tmp_path, "consistency"))
    assert summary.judged == 1 and len(server.requests) == 1
    prompt = server.requests[0]["messages"][0]["content"]
    assert "Answer to it: a red ring\n" in prompt and "Answer to it: a red one\n" in prompt
    log.append(replace(ONE, id=f"q{number}", place=(0, number, 0), meta={"pair": 2}) for number in (2, 3, 4))
    with pytest.raises(UserError, match=r"meta\.pair '2' stands in 3 answered rows \(q2, q3, q4\); it must be in 2"):
        judge_folder(tmp_path / "out", settings(server, tmp_path, "consistency"))


def test_a_pair_without_its_other_row_is_unjudged_and_the_rest_is_judged(server: LocalEndpoint, tmp_path: Path) -> None:
    """Row q1 was left out; the other row of pair 3 has no right answer."""
    written_record(tmp_path / "out")
    rows = [("q0", 1, "red"), ("q2", 2, "red"), ("q3", 2, "red"), ("q4", 3, "red"), ("q5", 3, None)]
    LineLog(tmp_path / "out/predictions.jsonl").append(
        replace(ONE, id=name, place=(0, number, 0), answer=name, meta={"pair": pair}, truth=truth)
        for number, (name, pair, truth) in enumerate(rows)
    )
    server.answer = lambda request: '{"score": 5}'
    first, second = judge_folder(tmp_path / "out", settings(server, tmp_path, "consistency", "detail"))
    assert (first.judged, first.unjudged, second.judged) == (1, {"incomplete": ["q0", "q4"]}, 4)
    assert first.details["incomplete"].startswith("meta.pair '1' has no second row that was answered")
    assert len(server.requests) == 1 + 4
    lines = [json.loads(line) for line in (tmp_path / "out/judgements_consistency.jsonl").read_text().splitlines()]
    assert [(line["id"], line["score"], line["tries"]) for line in lines] == [
        ("q2", 5, 1),
        ("q0", None, 0),
        ("q4", None, 0),
    ]


def test_a_summary_says_who_was_asked_and_about_which_predictions(
    server: LocalEndpoint, out: Path, tmp_path: Path
) -> None:
    """A server that names no model answers for the one asked for."""
    nameless = json.dumps({"choices": [{"message": {"content": '{"score": 3}'}}]}).encode()
    server.misbehave.extend([Misbehaviour(raw=nameless)] * 4)
    (summary,) = judge_folder(out, settings(server, tmp_path, "detail", temperature=0.0, max_tokens=64, seed=7))
    written = json.loads((out / "judge_detail.json").read_text())
    assert written["asked"] == {
        "model": "judge",
        "base_url": server.base_url,
        "parameters": {"temperature": 0.0, "max_tokens": 64, "seed": 7},
        "predictions_sha256": hashlib.sha256((out / "predictions.jsonl").read_bytes()).hexdigest(),
    }
    assert written["judges"] == [] and written["judged"] == 4
    assert f"(prompt {summary.version}) by judge: 4 answers\n" in summary.table()


def test_a_summary_of_fewer_predictions_does_not_outlive_them(server: LocalEndpoint, out: Path, tmp_path: Path) -> None:
    """The summary stays while its predictions do, also where the judge is down."""
    server.answer = lambda request: '{"score": 3}'
    judge_folder(out, settings(server, tmp_path, "detail", "context"))
    summaries, judgements = [out / "judge_detail.json", out / "judge_context.json"], out / "judgements_detail.jsonl"
    server.misbehave.extend([Misbehaviour(status=503)] * 100)
    with pytest.raises(UserError, match="gave no reply"):
        judge_folder(out, settings(server, tmp_path, "detail", "context", model="another"))
    assert all(path.exists() for path in summaries)
    LineLog(out / "predictions.jsonl").append([replace(ONE, id="q5", place=(0, 5, 0), answer="grey")])
    with pytest.raises(UserError, match="gave no reply"):
        judge_folder(out, settings(server, tmp_path, "detail", "context"))
    assert not any(path.exists() for path in summaries) and len(judgements.read_text().splitlines()) == 4


def test_a_setting_that_the_judge_refuses_ends_the_run(server: LocalEndpoint, tmp_path: Path, out: Path) -> None:
    said = b"{'message': \"Unsupported parameter: 'max_tokens'\"}"
    server.misbehave.extend([Misbehaviour(status=400, raw=said)] * 100)
    (few,) = judge_folder(out, settings(server, tmp_path, "detail", max_tokens=64))
    assert (
        few.unjudged == {"refused": ["q0", "q1", "q2", "q3"]} and "Unsupported parameter: 'max_tokens'" in few.table()
    )
    LineLog(out / "predictions.jsonl").append(
        replace(ONE, id=f"q{number}", place=(0, number, 0), answer=f"{number}") for number in range(5, 90)
    )
    server.requests.clear()
    with pytest.raises(UserError, match=r"refuses all of the first 20 questions .*Unsupported parameter: 'max_tokens'"):
        judge_folder(out, settings(server, tmp_path, "detail", max_tokens=64, concurrency=1))
    assert len(server.requests) < 25 and not (out / "judge_detail.json").exists()


@pytest.mark.parametrize("odd", ["[" * 200_000, '{"score": ' + "1" * 5000 + "}", '{"score": 1, "score": 5}'])
def test_an_odd_reply_leaves_one_answer_unjudged(server: LocalEndpoint, out: Path, tmp_path: Path, odd: str) -> None:
    """Also when it comes from the cache."""
    server.answer = lambda request: odd if said_of(request) == "green" else '{"score": 3}'
    for _ in range(2):
        (summary,) = judge_folder(out, settings(server, tmp_path, "detail"))
        assert (summary.judged, summary.unjudged) == (3, {"off_format": ["q1"]})
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"correct": "yes", "score": 4} I hope this helps', "one JSON object"),
        ("{'pred': 'yes', 'score': 4}", "one JSON object"),
        ('{"score": 4}', "correct and score only"),
        ('{"correct": "yes", "score": 4, "why": ""}', "correct and score only"),
        ('{"correct": "yes", "score": 6}', "whole number from 0 to 5"),
        ('{"correct": "yes", "score": 4.5}', "whole number from 0 to 5"),
        ('{"correct": "yes", "score": true}', "whole number from 0 to 5"),
        ('{"correct": "maybe", "score": 1}', '"yes" or "no"'),
        ("[4]", "correct and score only"),
        ('{"correct": "yes", "score": 1, "score": 5}', "each key once"),
        ("[" * 200_000, "one JSON object"),
        ('{"correct": "yes", "score": ' + "1" * 5000 + "}", "one JSON object"),
    ],
)
def test_replies_are_read_strictly(text: str, wrong: str) -> None:
    with pytest.raises(OffFormatError, match=wrong):
        RUBRICS["accuracy"].parse(text)


def test_rows_beyond_the_limit_of_the_last_start_are_not_judged(
    server: LocalEndpoint, out: Path, tmp_path: Path
) -> None:
    server.answer = verdict
    written_record(out, limit=2)
    (summary,) = judge_folder(out, settings(server, tmp_path, "accuracy"))
    assert (summary.judged, summary.unjudged, summary.without_truth) == (2, {}, 0) and len(server.requests) == 2


def test_every_prompt_has_a_rubric_a_version_and_no_open_place() -> None:
    words = dict.fromkeys(("question", "truth", "answer", "second_question", "second_answer"), "cost $5")
    assert {path.stem for path in PROMPTS.glob("*.txt")} == set(RUBRICS)
    for rubric in RUBRICS.values():
        (message,) = rubric.conversation(words)
        assert message.content.count("cost $5") == (5 if rubric.paired else 3)
        assert "$question" not in message.content and message.content.startswith(("You ", "A model"))
        assert rubric.version.startswith("1-") and len(rubric.version) == 14
    assert len({rubric.version for rubric in RUBRICS.values()}) == len(RUBRICS)
    assert Rubric(name="detail", source="").parse(' {"score": 0}\n') == Verdict(0)


def test_the_command_judges_a_folder_again(
    server: LocalEndpoint, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = verdict
    config = tmp_path / "judge.yaml"
    config.write_text(
        f"judge: {{rubrics: [accuracy], base_url: '{server.base_url}', model: judge, cache: '{tmp_path / 'cache'}', "
        "api_key_env: '', format_tries: 1}\n"
    )
    assert main(["evaluate", "--rescore", str(out), "--config", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["overall"]["n"] == 4 and found["judged"]["accuracy"]["judged"] == 3
    config.write_text(config.read_text().replace("[accuracy]", "[acuracy]"))
    assert main(["evaluate", "--rescore", str(out), "--config", str(config)]) == 2
    assert "rubric 'acuracy' is unknown; did you mean 'accuracy'?" in capsys.readouterr().err
