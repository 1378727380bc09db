"""The file of predictions: whole lines under many writers, unfinished ones, round trips, broken ones named."""

import fcntl
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.evaluation.local.predictions import LineLog, Prediction, read_predictions

ONE = Prediction(
    id="q0",
    manifest="set/manifest.jsonl",
    place=(0, 3, 1),
    kind="multiple_choice",
    question="<video>\nWhat?",
    options=("a dog", "a cat"),
    truth=None,
    answer="ça\u2028 va\n“B”",
    meta={"type": "CW", "list": [1, 2]},
    video="/x/a.mp4",
    duration_s=8.5,
    frames=4,
    visual_tokens=65,
    prompt_tokens=80,
    new_tokens=3,
    scale=1.5,
    batch=2,
    generate_s=0.25,
)


def test_a_prediction_survives_the_file(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "p.jsonl")
    log.append([ONE, replace(ONE, id="q1", place=(0, 1, 0), truth="B")])
    assert read_predictions(log.path) == [replace(ONE, id="q1", place=(0, 1, 0), truth="B"), ONE]
    assert log.lines() == 2 and log.mend() == 0


def test_many_writers_lose_no_line(tmp_path: Path) -> None:
    logs = [LineLog(tmp_path / "p.jsonl") for _ in range(4)]

    def write(number: int) -> None:
        logs[number % 4].append([replace(ONE, id=f"q{number}", answer="x" * 5000, place=(0, number, 0))])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(80)))
    assert [one.id for one in read_predictions(tmp_path / "p.jsonl")] == [f"q{number}" for number in range(80)]


@given(cut=st.integers(1, 200))
@settings(max_examples=20)
def test_an_unfinished_last_line_is_cut_off_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    log = LineLog(tmp_path_factory.mktemp("torn") / "p.jsonl")
    log.append([ONE])
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[:cut])
    assert log.mend() == cut
    assert log.path.read_bytes() == whole


def test_a_line_that_is_being_written_is_not_cut_off(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "p.jsonl")
    locked = threading.Event()

    def write_slowly() -> None:
        with log.path.open("wb", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(b'{"id"')
            locked.set()
            time.sleep(0.3)
            stream.write(b": 1}\n")

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write_slowly)
        assert locked.wait(10)
        assert log.mend() == 0
        writer.result()
    assert log.path.read_bytes() == b'{"id": 1}\n'


@pytest.mark.parametrize("again", [ONE, replace(ONE, answer="A")], ids=["the same", "another answer"])
def test_a_question_answered_twice_is_named(tmp_path: Path, again: Prediction) -> None:
    log = LineLog(tmp_path / "p.jsonl")
    log.append([ONE, replace(ONE, id="q1"), again])
    with pytest.raises(UserError, match=r"p\.jsonl:3: question 'q0' is answered at .*p\.jsonl:1 already.* delete one"):
        read_predictions(log.path)


def test_a_batch_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "p.jsonl")
    log.append([ONE])
    before = log.path.read_bytes()
    with pytest.raises(TypeError):
        log.append([ONE, replace(ONE, meta={"x": object()})])
    assert log.path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("frames", "4", "'frames' is '4'; it must be int"), ("answer", None, "'answer' is None; it must be str")],
)
def test_a_broken_line_is_named(tmp_path: Path, name: str, value: object, said: str) -> None:
    log = LineLog(tmp_path / "p.jsonl")
    log.append([ONE])
    row = json.loads(log.path.read_text())
    log.path.write_text(log.path.read_text() + json.dumps(row | {name: value}) + "\n")
    with pytest.raises(UserError, match=rf"p\.jsonl:2: field {said}"):
        read_predictions(log.path)
