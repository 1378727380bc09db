"""Long-VideoQA through the command line, with a teacher on this machine that answers, errs and breaks off."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep import long_videoqa
from data_prep.command_line import run_source, run_tool
from data_prep.long_videoqa import SUMMARY_QUESTIONS
from longvid_train.data.manifest import ManifestRules, Sample, read_manifest
from tests.data_prep.fake_teacher import reply
from tests.endpoint.local_endpoint import LocalEndpoint, Misbehaviour, Request, serve

MOVIES = ("tt1", "tt2", "tt3")


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalEndpoint]:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve(LocalEndpoint(answer=reply)) as running:
        yield running


@pytest.fixture
def movies(tmp_path: Path) -> Path:
    """An index of three movies: two with synopsis and script, the last with a synopsis alone."""
    folder = tmp_path / "movienet"
    folder.mkdir()
    rows = []
    for movie in MOVIES:
        (folder / f"{movie}.mp4").write_bytes(b"a video")
        (folder / f"{movie}.srt").write_text("")
        (folder / f"{movie}.synopsis.txt").write_text(f"{movie}-story tells a story.\n")
        texts = {"synopsis_file": f"{movie}.synopsis.txt"}
        if movie != "tt3":
            (folder / f"{movie}.script").write_text(f"{movie}-script INT. CABIN\n\nShe waits.\n")
            texts["script_file"] = f"{movie}.script"
        rows.append(
            {
                "id": f"movienet/{movie}",
                "media": [{"type": "video", "path": f"{movie}.mp4", "subtitles": f"{movie}.srt"}],
                "conversation": [{"role": "user", "text": "<video>"}],
                "license": "research only",
                "meta": {"imdb_id": movie, "title": "The Door", "duration_s": 60.0, **texts},
            }
        )
    path = folder / "movies.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def prepare(teacher: LocalEndpoint, movies: Path, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """Run the module and return its status and the manifest."""

    def run(*words: str, out: str = "movienet/qa.jsonl") -> tuple[int, Path]:
        options = {
            "--movies": str(movies),
            "--out": str(tmp_path / out),
            "--teacher-base-url": teacher.base_url,
            "--teacher-model": "teacher",
            "--teacher-cache": str(tmp_path / "cache"),
            "--teacher-api-key-env": "",
            "--teacher-max-attempts": "2",
            "--teacher-max-wait-s": "0.05",
        }
        status = run_source("long_videoqa", [*(word for pair in options.items() for word in pair), *words])
        return status, tmp_path / out

    return run


def rows(path: Path) -> list[Sample]:
    return list(read_manifest(path))


def test_a_movie_gives_two_summaries_and_five_pairs_of_each_kind(
    prepare: Callable[..., tuple[int, Path]], teacher: LocalEndpoint
) -> None:
    status, out = prepare()
    assert status == 0
    made = rows(out)
    kinds = [row.meta["kind"] for row in made if row.meta["imdb_id"] == "tt1"]
    assert kinds == ["brief", "detailed"] + ["plot"] * 5 + ["character"] * 5 + ["reasoning"] * 5 + ["detail"] * 5
    assert len(made) == 22 + 22 + 12
    assert len(teacher.requests) == 4 + 4 + 2
    row = made[2]
    assert row.id == "long_videoqa/movienet/tt1/plot/1"
    assert [turn.text for turn in row.conversation] == [
        "<video>\nplot question 0 about tt1-story?",
        "plot answer 0.",
    ]
    assert (row.media[0].path, row.media[0].subtitles) == ("tt1.mp4", "tt1.srt")
    assert row.license.startswith("research only; questions and answers by teacher-2026-01")
    assert row.meta["answer"] == "plot answer 0." and row.meta["title"] == "The Door"
    assert made[12].conversation[0].text == "<video>\npairs question 0 about tt1-script?"


def test_summaries_are_asked_for_in_our_words_the_same_in_every_run(
    prepare: Callable[..., tuple[int, Path]],
) -> None:
    _, first = prepare("--tasks", "summary")
    _, again = prepare("--tasks", "summary", out="movienet/again.jsonl")
    asked = [row.conversation[0].text.removeprefix("<video>\n") for row in rows(first)]
    assert asked == [row.conversation[0].text.removeprefix("<video>\n") for row in rows(again)]
    assert all(words in SUMMARY_QUESTIONS[kind] for words, kind in zip(asked, ["brief", "detailed"] * 3, strict=True))
    _, other = prepare("--tasks", "summary", "--seed", "5", out="movienet/other.jsonl")
    assert asked != [row.conversation[0].text.removeprefix("<video>\n") for row in rows(other)]


def test_rows_find_their_media_from_another_folder(prepare: Callable[..., tuple[int, Path]], movies: Path) -> None:
    _, above = prepare("--tasks", "plot", out="above.jsonl")
    assert rows(above)[0].media[0].path == "movienet/tt1.mp4"
    _, beside = prepare("--tasks", "plot", out="elsewhere/qa.jsonl")
    assert rows(beside)[0].media[0].subtitles == str(movies.parent / "tt1.srt")


def test_a_run_that_broke_off_goes_on_without_paying_again(
    prepare: Callable[..., tuple[int, Path]], teacher: LocalEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher.misbehave.extend([Misbehaviour()] * 4 + [Misbehaviour(status=503)] * 50)
    status, out = prepare("--teacher-concurrency", "1")
    told = capsys.readouterr().err
    assert status == 2 and not out.exists()
    assert "gave no reply in 2 attempts (last: status 503" in told and "run again to go on" in told
    teacher.misbehave.clear()
    asked_before = len(teacher.requests)
    status, out = prepare()
    assert status == 0 and len(rows(out)) == 56
    assert len(teacher.requests) == asked_before + 10 - 4
    assert "6 replies (60 + 12 tokens), 4 from the cache" in capsys.readouterr().err


def test_the_cost_is_printed_and_written(
    prepare: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    prices = ("--teacher-usd-per-million-prompt-tokens", "2.5", "--teacher-usd-per-million-completion-tokens", "10")
    _, out = prepare(*prices)
    assert "teacher teacher: 10 replies (100 + 20 tokens, 0.0004 USD), 0 from the cache" in capsys.readouterr().err
    spending = json.loads((out.parent / "qa.teacher.json").read_text())
    assert spending["cost_usd"] == pytest.approx((100 * 2.5 + 20 * 10) / 1e6) and spending["answers"] == 10


def test_a_long_run_tells_how_far_it_is(
    prepare: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_videoqa, "TOLD_EVERY", 5)
    prepare("--teacher-concurrency", "1")
    lines = [line for line in capsys.readouterr().err.splitlines() if "of 12 tasks" in line]
    assert [line.split(" of ")[0] for line in lines] == ["5", "10"]


def test_a_task_without_usable_reply_is_counted_and_named(
    prepare: Callable[..., tuple[int, Path]], teacher: LocalEndpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: Request) -> str:
        bad = "tt2-story" in str(request) and '"brief"' in str(request)
        return "I would rather not." if bad else reply(request)

    teacher.answer = answer
    status, out = prepare()
    told = capsys.readouterr().err
    assert status == 2 and not out.exists()
    assert "movies.jsonl:2: the teacher gave no usable reply (off_format)" in told and "raise --skip-bad" in told
    status, out = prepare("--skip-bad", "1", "--json")
    assert status == 0 and len(rows(out)) == 54
    assert json.loads(capsys.readouterr().out)["bad"] == {"the teacher gave no usable reply (off_format)": 1}


def test_an_off_format_reply_is_asked_for_again(
    prepare: Callable[..., tuple[int, Path]], teacher: LocalEndpoint
) -> None:
    teacher.answer = lambda request: reply(request) if len(request["messages"]) > 1 else "Sure! Here is the JSON:"
    status, out = prepare("--tasks", "plot")
    assert status == 0 and len(rows(out)) == 30
    assert len(teacher.requests) == 6


def test_movies_without_a_script_are_dropped_from_its_tasks(
    prepare: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare("--tasks", "reasoning,detail", "--json")
    assert json.loads(capsys.readouterr().out)["dropped"] == {"the movie has no script": 2}


def test_long_scripts_go_in_parts(
    prepare: Callable[..., tuple[int, Path]], teacher: LocalEndpoint, movies: Path
) -> None:
    """Three scenes of 100 characters under a ceiling of 110: details by scene (2, 2, 1), reasons from notes."""
    script = "".join(f"INT. ROOM-{n} ".ljust(99, "x") + "\n" for n in range(3))
    (movies.parent / "tt1.script").write_text(script)
    (movies.parent / "tt2.script").unlink()
    status, out = prepare("--tasks", "reasoning,detail", "--max-characters", "110", "--skip-bad", "2")
    assert status == 0
    asked = [request["messages"][0]["content"] for request in teacher.requests]
    found = (re.search(r"Write (\d) questions that ask for the d", prompt) for prompt in asked)
    counts = sorted(match[1] for match in found if match)
    assert counts == ["1", "2", "2"]
    condensed = [prompt for prompt in asked if '"notes"' in prompt]
    assert ["part 1 of 3" in prompt for prompt in condensed] == [True, False, False]
    assert all("at most 4 words" in " ".join(prompt.split()) for prompt in condensed)
    [reasons] = [prompt for prompt in asked if "reason of something" in " ".join(prompt.split())]
    assert reasons.split("=" * 12)[1].strip() == "INT. notes\n\nINT. notes\n\nINT. notes"
    assert [row.meta["kind"] for row in rows(out)] == ["reasoning"] * 5 + ["detail"] * 5


@pytest.mark.parametrize("content", [b"", b" \n", b"caf\xe9"])
def test_unreadable_texts_are_named(
    prepare: Callable[..., tuple[int, Path]],
    movies: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
) -> None:
    path = movies.parent / "tt2.synopsis.txt"
    path.write_bytes(content)
    status, _ = prepare("--tasks", "plot")
    assert status == 2
    assert f"movies.jsonl:2: the synopsis {'cannot be read' if content == b'caf' + bytes([0xE9]) else 'is empty'}" in (
        told := capsys.readouterr().err
    )
    assert str(path) in told


def test_shards_ask_only_their_own_questions_and_merge_to_the_whole(
    prepare: Callable[..., tuple[int, Path]], teacher: LocalEndpoint, tmp_path: Path
) -> None:
    _, whole = prepare(out="movienet/whole.jsonl")
    teacher.requests.clear()
    for index in (1, 2, 3):
        status, out = prepare("--shard", f"{index}/3", "--teacher-cache", str(tmp_path / "other-cache"))
        assert status == 0
    assert len(teacher.requests) == 10
    shards = [str(out.with_name(f"qa.shard-{index}-of-3.jsonl")) for index in (1, 2, 3)]
    assert run_tool("merge", [*shards, "--out", str(out)]) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_several_processes_make_the_same_manifest(prepare: Callable[..., tuple[int, Path]]) -> None:
    _, one = prepare()
    _, two = prepare("--processes", "2", out="movienet/two.jsonl")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "plots"), "'plots' is no task; there are summary, plot, reasoning, detail; did you mean 'plot'?"),
        (("--teacher-concurrency", "0"), "concurrency 0 must be at least 1"),
        (("--teacher-base-url", "localhost:8000"), "base_url 'localhost:8000' is not an http address"),
        (("--teacher-api-key-env", "NO_SUCH_KEY"), "environment variable 'NO_SUCH_KEY' holds no API key"),
        (("--movies", "nowhere.jsonl"), "manifest 'nowhere.jsonl' cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    prepare: Callable[..., tuple[int, Path]],
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    status, _ = prepare(*words)
    told = capsys.readouterr().err
    assert status == 2 and message in told and told.count("\n") == 1


def test_rows_can_be_trained_on(prepare: Callable[..., tuple[int, Path]]) -> None:
    _, out = prepare()
    manifest: Any = read_manifest(out, ManifestRules(require_answer=True, check_files=True))
    assert len({row.id for row in manifest}) == len(manifest) == 56
