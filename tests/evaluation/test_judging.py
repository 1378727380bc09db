"""A judge behind a local server that also misbehaves: strict replies, unjudged rows counted, nothing asked twice."""

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


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
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
    endpoint = EndpointSettings(
        base_url=server.base_url, model="judge", cache=str(tmp_path / "cache"), **values | changes
    )
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
    assert (
        "1 unjudged and in no mean: off_format (q2)" in summary.table()
        and "| accuracy, % | 3 | 33.33 |" in summary.table()
    )
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
    (tmp_path / "out").mkdir()
    log = LineLog(tmp_path / "out/predictions.jsonl")
    log.append([replace(ONE, meta={"pair": 1}), replace(ONE, id="q1", answer="a red one", meta={"pair": 1})])
    server.answer = lambda request: '{"score": 5}'
    (summary,) = judge_folder(tmp_path / "out", settings(server, tmp_path, "consistency"))
    assert summary.judged == 1 and len(server.requests) == 1
    prompt = server.requests[0]["messages"][0]["content"]
    assert "Answer to it: a red ring\n" in prompt and "Answer to it: a red one\n" in prompt
    log.append([replace(ONE, id="q2", meta={"pair": 2})])
    with pytest.raises(UserError, match=r"meta\.pair '2' stands in 1 answered rows \(q2\); it must be in 2"):
        judge_folder(tmp_path / "out", settings(server, tmp_path, "consistency"))


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
    ],
)
def test_replies_are_read_strictly(text: str, wrong: str) -> None:
    with pytest.raises(OffFormatError, match=wrong):
        RUBRICS["accuracy"].parse(text)


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
    (out / "evaluation.json").write_text('{"version": 1, "identity": {}, "starts": []}')
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
