"""The client against a server that misbehaves in every way a real one does."""

import json
import logging
import re
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from longvid_train.endpoint import Answer, ChatClient, EndpointSettings, Failure, Message, OffFormatError
from longvid_train.endpoint.transport import MAX_BODY_BYTES, parse_reply, retry_after_s
from longvid_train.errors import UserError
from tests.endpoint.conftest import VirtualTime
from tests.endpoint.local_endpoint import LocalEndpoint, Misbehaviour, completion

QUESTION = (Message("system", "Answer yes or no."), Message("user", "Is it red?"))


def yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise OffFormatError("write 'yes' or 'no'")
    return text == "yes"


def settings_of(endpoint: LocalEndpoint, folder: Path, **changes: Any) -> EndpointSettings:
    values: dict[str, Any] = {
        "base_url": endpoint.base_url,
        "model": "teacher",
        "cache": str(folder / "cache"),
        "api_key_env": "TEACHER_KEY",
        "timeout_s": 20.0,
        **changes,
    }
    return EndpointSettings(**values)


def client_of(endpoint: LocalEndpoint, folder: Path, time: VirtualTime, **changes: Any) -> ChatClient:
    return ChatClient(settings_of(endpoint, folder, **changes), clock=time.clock, sleep=time.sleep)


def test_a_question_becomes_one_request_and_its_parsed_answer(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    prices = {"usd_per_million_prompt_tokens": 3.0, "usd_per_million_completion_tokens": 15.0}
    with client_of(endpoint, tmp_path, virtual_time, temperature=0.0, max_tokens=50, **prices) as client:
        assert client.ask(QUESTION, yes_or_no) == Answer(True, "yes", "teacher-2026-01", 1)
    assert endpoint.requests == [
        {
            "model": "teacher",
            "messages": [
                {"role": "system", "content": "Answer yes or no."},
                {"role": "user", "content": "Is it red?"},
            ],
            "temperature": 0.0,
            "max_tokens": 50,
        }
    ]
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-secret-value"
    assert client.spending.as_json() == {
        "sent": 1,
        "from_cache": 0,
        "retries": {},
        "answers": 1,
        "failures": {},
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "uncounted": 0,
        "cost_usd": pytest.approx((10 * 3 + 2 * 15) / 1e6),
    }


def test_a_reply_is_asked_for_once_by_all_runs_together(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    for _ in range(2):
        with client_of(endpoint, tmp_path, virtual_time) as client:
            assert isinstance(client.ask(QUESTION, yes_or_no), Answer)
    assert len(endpoint.requests) == 1
    assert (client.spending.from_cache, client.spending.sent, client.spending.prompt_tokens) == (1, 0, 0)


@pytest.mark.parametrize("changes", [{"model": "other"}, {"temperature": 0.5}, {"seed": 1}, {"max_tokens": 9}], ids=str)
def test_another_model_or_parameter_is_another_request(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime, changes: dict[str, Any]
) -> None:
    for more in ({}, changes):
        with client_of(endpoint, tmp_path, virtual_time, **more) as client:
            client.ask(QUESTION, yes_or_no)
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    ("met", "counted"),
    [
        (Misbehaviour(status=429), "status 429"),
        (Misbehaviour(status=500), "status 500"),
        (Misbehaviour(status=503), "status 503"),
        (Misbehaviour(status=408), "status 408"),
        (Misbehaviour(raw=b'{"choices": [', announced_bytes=4000), "connection"),
        (Misbehaviour(raw=b"<html>gateway</html>"), "malformed reply"),
        (Misbehaviour(raw=b'{"choices": []}'), "malformed reply"),
        (Misbehaviour(raw=b'{"choices": [{"message": {"content": 7}}]}'), "malformed reply"),
        (Misbehaviour(raw=b'{"choices": [{"message": {"content": "yes"}}], "model": "\\ud800"}'), "malformed reply"),
        (Misbehaviour(raw=completion("yes", usage={"prompt_tokens": -1, "completion_tokens": 1})), "malformed reply"),
        (Misbehaviour(raw=b"not gzip", headers=(("Content-Encoding", "gzip"),)), "malformed reply"),
        (Misbehaviour(raw=b"\xff\xfe"), "malformed reply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_passing_failures_are_met_with_another_attempt(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime, met: Misbehaviour, counted: str
) -> None:
    endpoint.misbehave.extend([met, met])
    with client_of(endpoint, tmp_path, virtual_time) as client:
        assert client.ask(QUESTION, yes_or_no) == Answer(True, "yes", "teacher-2026-01", 1)
    assert len(endpoint.requests) == 3
    assert client.spending.retries == {counted: 2}
    assert client.spending.sent == 1


@pytest.mark.parametrize("met", [Misbehaviour(hang=True), Misbehaviour(drip_s=0.05)], ids=["silent", "dripping"])
def test_a_slow_reply_counts_as_a_timeout(endpoint: LocalEndpoint, tmp_path: Path, met: Misbehaviour) -> None:
    """The dripping server sends a byte every 50 ms: no single read times out, only the whole reply does."""
    endpoint.misbehave.append(met)
    with ChatClient(settings_of(endpoint, tmp_path, timeout_s=0.5), sleep=lambda seconds: None) as client:
        assert isinstance(client.ask(QUESTION, yes_or_no), Answer)
    assert client.spending.retries == {"timeout": 1}


def test_a_reply_without_end_is_dropped(endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime) -> None:
    endpoint.misbehave.append(Misbehaviour(raw=b" " * (MAX_BODY_BYTES + 1)))
    with client_of(endpoint, tmp_path, virtual_time) as client:
        assert isinstance(client.ask(QUESTION, yes_or_no), Answer)
    assert client.spending.retries == {"malformed reply": 1}


def test_retry_after_is_waited_for_and_no_sooner(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    endpoint.misbehave.append(Misbehaviour(status=429, headers=(("Retry-After", "17"),)))
    with client_of(endpoint, tmp_path, virtual_time) as client:
        client.ask(QUESTION, yes_or_no)
    assert 17.0 <= sum(virtual_time.slept) <= 18.0


def test_waits_without_retry_after_double_with_jitter_up_to_the_longest(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    endpoint.misbehave.extend([Misbehaviour(status=500)] * 12)
    with client_of(endpoint, tmp_path, virtual_time, max_attempts=13, max_wait_s=30.0) as client:
        client.ask(QUESTION, yes_or_no)
    assert len(virtual_time.slept) == 12
    assert all(wait_s <= min(2.0**attempt, 30.0) for attempt, wait_s in enumerate(virtual_time.slept))
    assert len({round(wait_s, 6) for wait_s in virtual_time.slept}) > 6


def test_an_endpoint_that_stays_down_ends_the_run_and_keeps_what_came_before(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    with client_of(endpoint, tmp_path, virtual_time, max_attempts=3) as client:
        client.ask(QUESTION, yes_or_no)
        endpoint.misbehave.extend([Misbehaviour(status=503)] * 3)
        with pytest.raises(UserError, match=r"no reply in 3 attempts \(last: status 503: busy\).*run again") as caught:
            client.ask((Message("user", "Is it blue?"),), yes_or_no)
        assert str(tmp_path / "cache") in str(caught.value)
        assert isinstance(client.ask(QUESTION, yes_or_no), Answer)
    assert client.spending.from_cache == 1


def test_an_endpoint_that_asks_for_too_long_a_wait_ends_the_run(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    endpoint.misbehave.append(Misbehaviour(status=429, headers=(("Retry-After", "3600"),)))
    with (
        client_of(endpoint, tmp_path, virtual_time, max_wait_s=60.0) as client,
        pytest.raises(UserError, match=r"come back in 3600 s .* longer than max_wait_s 60"),
    ):
        client.ask(QUESTION, yes_or_no)
    assert len(endpoint.requests) == 1 and not virtual_time.slept


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_a_refusal_of_every_question_is_the_users_to_mend(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime, status: int
) -> None:
    endpoint.misbehave.append(
        Misbehaviour(status=status, raw=b"bad key sk-secret-value", headers=(("Location", "http://elsewhere/"),))
    )
    with (
        client_of(endpoint, tmp_path, virtual_time) as client,
        pytest.raises(UserError, match=f"refuses with status {status}") as caught,
    ):
        client.ask(QUESTION, yes_or_no)
    assert len(endpoint.requests) == 1
    assert "sk-secret-value" not in str(caught.value)
    assert ("***" in str(caught.value)) == (status != 301)


@pytest.mark.parametrize(
    ("met", "detail"),
    [
        (Misbehaviour(status=400, raw=b'{"error": "context length exceeded"}'), "context length exceeded"),
        (Misbehaviour(raw=completion(None, finish_reason="content_filter")), "content filter"),
    ],
)
def test_a_refusal_of_one_question_is_a_counted_failure_of_it_alone(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime, met: Misbehaviour, detail: str
) -> None:
    endpoint.misbehave.append(met)
    with client_of(endpoint, tmp_path, virtual_time) as client:
        failure = client.ask(QUESTION, yes_or_no)
        assert isinstance(failure, Failure) and failure.reason == "refused" and detail in failure.detail
        assert isinstance(client.ask((Message("user", "Is it blue?"),), yes_or_no), Answer)
    assert len(endpoint.requests) == 2
    assert client.spending.failures == {"refused": 1} and client.spending.answers == 1


@pytest.mark.parametrize("status", [400, 422])
def test_an_endpoint_that_refuses_all_of_the_first_questions_ends_the_run(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime, status: int
) -> None:
    endpoint.misbehave.extend([Misbehaviour(status=status, raw=b"max_tokens is not supported")] * 100)
    with client_of(endpoint, tmp_path, virtual_time, max_tokens=9) as client, pytest.raises(UserError) as caught:
        for number in range(100):
            client.ask((Message("user", f"question {number}"),), yes_or_no)
    assert len(endpoint.requests) == 20 and client.spending.failures == {"refused": 20}
    assert str(caught.value) == (
        f"endpoint '{endpoint.base_url}' refuses all of the first 20 questions (last: status {status}: max_tokens is "
        "not supported); change or leave out the setting it names (sent: model, max_tokens), or ask a model that takes "
        "such questions"
    )


@pytest.mark.parametrize("kept", [False, True], ids=["answered", "from the cache"])
def test_refusals_after_a_reply_are_of_those_questions_alone(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime, kept: bool
) -> None:
    questions = [(Message("user", f"question {number}"),) for number in range(30)]
    if kept:
        with client_of(endpoint, tmp_path, virtual_time) as client:
            client.ask(questions[0], yes_or_no)
    else:
        endpoint.misbehave.append(Misbehaviour())
    endpoint.misbehave.extend([Misbehaviour(status=400)] * 29)
    with client_of(endpoint, tmp_path, virtual_time, concurrency=1) as client:
        answers = list(client.ask_all(questions, yes_or_no))
    assert isinstance(answers[0], Answer) and sum(isinstance(one, Failure) for one in answers) == 29


def test_an_off_format_reply_is_asked_again_with_what_was_wrong(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    replies = iter(["Well, perhaps.", "no"])
    endpoint.answer = lambda request: next(replies)
    with client_of(endpoint, tmp_path, virtual_time) as client:
        assert client.ask(QUESTION, yes_or_no) == Answer(False, "no", "teacher-2026-01", 2)
    asked = endpoint.requests[1]["messages"]
    assert asked[:2] == endpoint.requests[0]["messages"]
    assert asked[2] == {"role": "assistant", "content": "Well, perhaps."}
    assert asked[3]["role"] == "user" and "write 'yes' or 'no'" in asked[3]["content"]
    assert client.spending.sent == 2


def test_replies_that_stay_off_format_are_a_counted_failure_and_cost_nothing_again(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    endpoint.answer = lambda request: "perhaps"
    for _ in range(2):
        with client_of(endpoint, tmp_path, virtual_time, format_tries=3) as client:
            assert client.ask(QUESTION, yes_or_no) == Failure("off_format", "write 'yes' or 'no'", 3)
        assert client.spending.failures == {"off_format": 1}
    assert len(endpoint.requests) == 3


def test_a_reply_cut_off_at_the_token_limit_is_no_answer_even_if_it_parses(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    endpoint.misbehave.extend([Misbehaviour(raw=completion("yes", finish_reason="length"))] * 2)
    with client_of(endpoint, tmp_path, virtual_time, format_tries=2) as client:
        failure = client.ask(QUESTION, yes_or_no)
    assert isinstance(failure, Failure) and failure.reason == "cut_off"
    assert len(endpoint.requests) == 2


def test_an_empty_reply_is_not_sent_back(endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime) -> None:
    endpoint.misbehave.append(Misbehaviour(raw=completion(None)))
    with client_of(endpoint, tmp_path, virtual_time) as client:
        assert isinstance(client.ask(QUESTION, yes_or_no), Answer)
    assert [message["role"] for message in endpoint.requests[1]["messages"]] == ["system", "user", "user"]


def test_answers_come_in_the_order_of_the_questions_with_that_many_under_way(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    endpoint.answer = lambda request: request["messages"][0]["content"].upper()
    endpoint.hold = threading.Event()
    drawn: list[int] = []

    def questions() -> Any:
        for number in range(20):
            drawn.append(number)
            yield (Message("user", f"question {number}"),)

    with client_of(endpoint, tmp_path, virtual_time, concurrency=3) as client:
        threading.Timer(0.3, endpoint.hold.set).start()
        answers = list(client.ask_all(questions(), str))
    assert [answer.value for answer in answers if isinstance(answer, Answer)] == [f"QUESTION {n}" for n in range(20)]
    assert endpoint.most_at_once == 3


def test_questions_are_drawn_as_they_are_needed(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    drawn: list[int] = []

    def questions() -> Any:
        for number in range(1000):
            drawn.append(number)
            yield (Message("user", f"question {number}"),)

    with client_of(endpoint, tmp_path, virtual_time, concurrency=2) as client:
        stream = client.ask_all(questions(), str)
        next(stream)
        stream.close()
    assert len(drawn) == 4


def test_the_run_stops_when_the_budget_is_used_up(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    """Each reply costs 10 x 1000 + 2 x 5000 millionths: 0.02 USD; three fit under 0.05 with the last one passing it."""
    prices = {"usd_per_million_prompt_tokens": 1000.0, "usd_per_million_completion_tokens": 5000.0}
    with client_of(endpoint, tmp_path, virtual_time, max_cost_usd=0.05, **prices) as client:
        for number in range(3):
            client.ask((Message("user", f"question {number}"),), yes_or_no)
        with pytest.raises(UserError, match=r"cost 0\.0600 USD, which reaches max_cost_usd 0\.05"):
            client.ask((Message("user", "one more"),), yes_or_no)
        assert isinstance(client.ask((Message("user", "question 0"),), yes_or_no), Answer)
    assert len(endpoint.requests) == 3


def test_replies_without_usage_are_counted_apart(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    endpoint.usage = None
    with client_of(endpoint, tmp_path, virtual_time) as client:
        client.ask(QUESTION, yes_or_no)
    assert (client.spending.uncounted, client.spending.sent, client.spending.cost_usd) == (1, 1, None)


def test_a_run_that_fails_does_not_wait_for_the_others(endpoint: LocalEndpoint, tmp_path: Path) -> None:
    """One job fails while another waits a minute for its next attempt, which is then never sent."""
    endpoint.misbehave.append(Misbehaviour(status=429, headers=(("Retry-After", "60"),)))
    with ChatClient(settings_of(endpoint, tmp_path, concurrency=2)) as client:

        def fail() -> None:
            while not client.spending.retries:
                time.sleep(0.01)
            raise UserError("no such model")

        with pytest.raises(UserError, match="no such model"):
            list(client.run_all([fail, lambda: client.ask(QUESTION, yes_or_no)]))
        assert client.spending.retries == {"status 429": 1} and client.spending.sent == 0
        assert len(endpoint.requests) == 1


def test_requests_are_held_to_the_ceiling(endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime) -> None:
    questions = [(Message("user", f"question {number}"),) for number in range(9)]
    with client_of(endpoint, tmp_path, virtual_time, concurrency=1, requests_per_minute=4) as client:
        assert len(list(client.ask_all(questions, yes_or_no))) == 9
    assert sum(virtual_time.slept) == pytest.approx(120.0)


def test_the_token_ceiling_counts_what_replies_really_took(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    """A question is reserved with ceil(24 / 3) + 8 + 40 = 56 tokens; its reply says that it took 12."""
    questions = [(Message("user", f"question number {number:08d}"),) for number in range(5)]
    with client_of(endpoint, tmp_path, virtual_time, concurrency=1, max_tokens=40, tokens_per_minute=100) as client:
        for question in questions:
            client.ask(question, yes_or_no)
    assert virtual_time.slept == [pytest.approx(60.0)]
    assert len(endpoint.requests) == 5


def test_the_key_stays_out_of_files_messages_and_logs(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = settings_of(endpoint, tmp_path)
    with client_of(endpoint, tmp_path, virtual_time) as client:
        client.ask(QUESTION, yes_or_no)
    written = [path.read_text() for path in (tmp_path / "cache").rglob("*.json")]
    assert len(written) == 1
    for text in (*written, caplog.text, repr(settings), repr(client.spending)):
        assert "sk-secret-value" not in text


def test_a_missing_key_is_named_before_anything_is_sent(
    endpoint: LocalEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "  ")
    with pytest.raises(UserError, match="environment variable 'TEACHER_KEY' holds no API key"):
        ChatClient(settings_of(endpoint, tmp_path))
    with ChatClient(settings_of(endpoint, tmp_path, api_key_env="")) as client:
        client.ask(QUESTION, yes_or_no)
    assert "Authorization" not in endpoint.headers[0]


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("\u201csk-secret\u201d", "character 1 is U+201C"),
        ("sk-\u00e9", "character 4 is U+00E9"),
        ("sk-a\nsk-b", "character 5 is U+000A"),
    ],
)
def test_a_key_that_no_header_can_hold_is_named_before_anything_is_sent(
    endpoint: LocalEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, named: str
) -> None:
    monkeypatch.setenv("TEACHER_KEY", key)
    with pytest.raises(UserError, match=re.escape(f"'TEACHER_KEY' holds an API key whose {named}")) as caught:
        ChatClient(settings_of(endpoint, tmp_path))
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize("damage", ["", "{", '{"version": 1}', "[]"])
def test_a_damaged_cache_file_is_named(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime, damage: str
) -> None:
    with client_of(endpoint, tmp_path, virtual_time) as client:
        client.ask(QUESTION, yes_or_no)
        [path] = (tmp_path / "cache").rglob("*.json")
        path.write_text(damage)
        with pytest.raises(UserError, match=rf"{path}' is damaged .*delete that file"):
            client.ask(QUESTION, yes_or_no)


def test_a_cache_file_of_another_request_is_not_taken(
    endpoint: LocalEndpoint, tmp_path: Path, virtual_time: VirtualTime
) -> None:
    with client_of(endpoint, tmp_path, virtual_time) as client:
        client.ask(QUESTION, yes_or_no)
        [path] = (tmp_path / "cache").rglob("*.json")
        entry = json.loads(path.read_text())
        entry["request"]["model"] = "another"
        path.write_text(json.dumps(entry))
        with pytest.raises(UserError, match="of another request"):
            client.ask(QUESTION, yes_or_no)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "api.openai.com/v1"}, "base_url 'api.openai.com/v1' is not an http address"),
        ({"base_url": "https://me:pass@host/v1"}, "base_url holds a user name or password"),
        ({"base_url": "http://localhost:80O0/v1"}, "base_url 'http://localhost:80O0/v1' is not an http address"),
        ({"base_url": "http://localhost:99999/v1"}, "base_url 'http://localhost:99999/v1' is not an http address"),
        ({"base_url": "http://[::1/v1"}, "base_url 'http://[::1/v1' is not an http address"),
        ({"base_url": "http://exa\u2026mple/v1"}, "base_url 'http://exa\u2026mple/v1' is not an http address"),
        ({"base_url": "http://me:pass@[::1/v1"}, "base_url '***@[::1/v1' is not an http address"),
        ({"base_url": "https://host/v1?key=pass@"}, "base_url holds a '?' or '#'"),
        ({"model": " "}, "model is blank"),
        ({"concurrency": 0}, "concurrency 0 must be at least 1"),
        ({"requests_per_minute": 0}, "requests_per_minute 0 must be at least 1"),
        ({"timeout_s": 0.0}, "timeout_s 0.0 must be above 0"),
        ({"max_tokens": 0}, "max_tokens 0 must be at least 1"),
        ({"usd_per_million_prompt_tokens": 1.0}, "usd_per_million_completion_tokens is missing"),
        ({"max_cost_usd": 1.0}, "max_cost_usd 1.0 needs the prices"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"base_url": "https://host/v1", "model": "m", "cache": "c", **changes}
    with pytest.raises(UserError) as caught:
        EndpointSettings(**values)
    assert message in str(caught.value)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("5", 5.0),
        (" 0 ", 0.0),
        ("Sat, 21 Nov 2026 08:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 07:00:00 GMT", 0.0),
        ("soon", None),
        ("-3", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, datetime(2026, 11, 21, 8, 0, tzinfo=UTC)) == seconds


def test_a_reply_that_omits_what_it_may_is_read() -> None:
    reply = parse_reply(b'{"choices": [{"message": {"content": "a"}}], "usage": null}')
    assert (reply.text, reply.finish_reason, reply.model, reply.prompt_tokens) == ("a", "", "", None)
