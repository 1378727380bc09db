"""A user's own folder: kinds of rows, subtitles of every name, probing, and speech to text."""

import json
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_prep import speech
from data_prep.captions import CAPTION_INSTRUCTIONS
from data_prep.command_line import run_source
from data_prep.folder import walk
from data_prep.speech import Spoken, srt_text
from longvid_train.video import read_subtitles
from longvid_train.world.encode import write_mp4

SRT = "1\n00:00:01,000 --> 00:00:02,000\nHello\n"
VTT = "WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    for name in ("b.mp4", "a/x.mkv", "a/deep/er/y.webm", ".hidden/z.mp4", "a/.z.mp4", "notes.txt", "c.MP4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")
    return folder


def run(folder: Path, *further: str) -> int:
    return run_source("folder", ["--videos", str(folder), "--out", str(folder.parent / "out.jsonl"), *further])


def rows(folder: Path, *further: str) -> list[dict[str, Any]]:
    assert run(folder, "--overwrite", *further) == 0
    return [json.loads(line) for line in (folder.parent / "out.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_question_is_asked_about_every_video_in_the_order_of_names(videos: Path) -> None:
    made = rows(videos, "--question", "What happens?", "--name", "home", "--license", "CC0-1.0", "--data-version", "3")
    assert [row["media"][0]["path"] for row in made] == [
        "videos/a/deep/er/y.webm",
        "videos/a/x.mkv",
        "videos/b.mp4",
        "videos/c.MP4",
    ]
    assert made[1]["id"] == "home/a/x.mkv"
    assert made[0]["conversation"] == [{"role": "user", "text": "<video>\nWhat happens?"}]
    assert {(row["source"], row["license"], row["version"]) for row in made} == {("home", "CC0-1.0", "3")}


def test_captions_stand_beside_the_videos(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b", "a/x", "a/deep/er/y"):
        (videos / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + f" caption of {name}\n".encode())
    assert run(videos, "--captions") == 2
    assert "caption file is missing" in capsys.readouterr().err
    made = rows(videos, "--captions", "--skip-missing", "1")
    assert [row["conversation"][1]["text"] for row in made] == [f"caption of {n}" for n in ("a/deep/er/y", "a/x", "b")]
    assert all(row["conversation"][0]["text"].removeprefix("<video>\n") in CAPTION_INSTRUCTIONS for row in made)
    (videos / "b.txt").write_bytes(b"\xff")
    assert run(videos, "--captions", "--overwrite", "--skip-missing", "1") == 2
    assert "the caption file is not UTF-8" in capsys.readouterr().err


def test_questions_come_from_a_table_and_may_lack_answers(videos: Path, tmp_path: Path) -> None:
    table = tmp_path / "q.csv"
    table.write_text("answer,video,question,note\nred,b.mp4,Which colour?,x\n,a/x.mkv,Where?,\nblue,b.mp4,And then?,\n")
    made = rows(videos, "--questions", str(table))
    assert [row["id"] for row in made] == ["folder/b.mp4", "folder/a/x.mkv", "folder/b.mp4#2"]
    assert [len(row["conversation"]) for row in made] == [2, 1, 2]
    assert made[2]["meta"] == {"kind": "open", "answer": "blue"}


@pytest.mark.parametrize(
    ("files", "language", "expected"),
    [
        (["x.srt"], None, "x.srt"),
        (["x.vtt"], None, "x.vtt"),
        (["x.srt", "x.vtt"], None, "x.srt"),
        (["x.de.srt"], None, "x.de.srt"),
        (["x.pt-BR.vtt"], None, "x.pt-BR.vtt"),
        (["x.de.srt", "x.de.vtt"], None, "x.de.srt"),
        (["x.de.srt", "x.en.srt", "x.vtt"], None, "x.vtt"),
        (["x.de.srt"], "en", None),
        (["x.part2.srt", "x.de.txt", "xx.de.srt"], None, None),
        (["x.de.srt", "x.srt"], "de", "x.de.srt"),
        (["x.de.srt", "x.en.vtt"], "en", "x.en.vtt"),
        (["x.srt"], "en", "x.srt"),
        (["y.srt"], None, None),
    ],
)
def test_subtitles_are_found_by_name_and_language(
    videos: Path, files: list[str], language: str | None, expected: str | None
) -> None:
    for name in files:
        (videos / "a" / name).write_text(VTT if name.endswith("vtt") else SRT)
    options = [] if language is None else ["--language", language]
    row = next(row for row in rows(videos, "--question", "q", *options) if row["id"] == "folder/a/x.mkv")
    assert row["media"][0].get("subtitles") == (None if expected is None else f"videos/a/{expected}")


def test_of_several_languages_one_must_be_chosen(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.de.srt", "b.en.srt"):
        (videos / name).write_text(SRT)
    assert run(videos, "--question", "q") == 2
    error = capsys.readouterr().err
    assert "b.mp4: subtitles in several languages (b.de.srt, b.en.srt; choose one with --language)" in error
    made = rows(videos, "--question", "q", "--language", "en")
    assert [row["media"][0].get("subtitles") for row in made] == [None, None, "videos/b.en.srt", None]


def test_broken_subtitles_are_named_with_their_line(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "b.srt").write_text(SRT + "\n2\n00:00:09,000 -> 00:00:10,000\nx\n")
    assert run(videos, "--question", "q") == 2
    error = capsys.readouterr().err
    assert f"{videos / 'b.mp4'}: the subtitles are broken" in error and "b.srt:6: expected" in error
    assert len(rows(videos, "--question", "q", "--skip-bad", "1")) == 3
    left_out = json.loads((videos.parent / "out.left_out.jsonl").read_text())
    assert left_out["kind"] == "bad" and "b.srt:6" in left_out["detail"]


def test_probing_finds_videos_that_cannot_be_read(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in walk(videos, (".mp4", ".mkv", ".webm")):
        (videos / path).unlink()
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    write_mp4(videos / "b.mp4", iter(frames), fps=Fraction(4), gop=4, crf=30)
    (videos / "torn.mp4").write_bytes((videos / "b.mp4").read_bytes()[:200])
    assert run(videos, "--question", "q", "--probe") == 2
    assert "torn.mp4: the video cannot be read" in capsys.readouterr().err
    made = rows(videos, "--question", "q", "--probe", "--skip-bad", "1")
    assert [row["id"] for row in made] == ["folder/b.mp4"]
    assert len(rows(videos, "--question", "q")) == 2


def test_exactly_one_kind_of_rows_is_asked_for(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(videos) == 2
    assert run(videos, "--question", "q", "--captions") == 2
    assert capsys.readouterr().err.count("give exactly one of --questions CSV, --captions and --question TEXT") == 2


def test_a_changed_folder_is_another_order(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(videos, "--question", "q") == 0
    assert run(videos, "--question", "q", "--json") == 0
    (videos / "b.srt").write_text(SRT)
    assert run(videos, "--question", "q") == 2
    assert "made with other settings or inputs" in capsys.readouterr().err


def test_speech_to_text_needs_its_extra(
    videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speech, "PACKAGE", "a_package_that_is_not_there")
    assert run(videos, "--question", "q", "--speech-to-text", "small") == 2
    assert "pip install 'longvid-train[speech]'" in capsys.readouterr().err
    assert not (videos.parent / "transcripts").exists()


@pytest.fixture
def whisper(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """A stand-in for faster-whisper with its call signature; the list of its calls."""
    calls: list[tuple[str, str, str | None]] = []

    class WhisperModel:
        def __init__(self, name: str) -> None:
            self.name = name

        def transcribe(self, path: str, language: str | None = None) -> tuple[Any, Any]:
            calls.append((self.name, path, language))
            if path.endswith("x.mkv"):
                raise IndexError("tuple index out of range")
            segments = [SimpleNamespace(start=0.5, end=1.25, text=f" said in {Path(path).name} ")]
            return iter([*segments, SimpleNamespace(start=2.0, end=2.5, text="  ")]), SimpleNamespace(language="en")

    module = ModuleType("faster_whisper")
    module.WhisperModel = WhisperModel  # type: ignore[attr-defined]
    module.__spec__ = SimpleNamespace(name="faster_whisper")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    speech._model.cache_clear()
    return calls


def test_missing_subtitles_are_transcribed_once(
    videos: Path, whisper: list[tuple[str, str, str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / "b.srt").write_text(SRT)
    options = ["--question", "q", "--speech-to-text", "small", "--language", "en"]
    assert run(videos, *options) == 2
    assert "x.mkv: the speech cannot be transcribed" in capsys.readouterr().err
    made = rows(videos, *options, "--skip-bad", "1")
    subtitles = {row["id"]: row["media"][0]["subtitles"] for row in made}
    assert subtitles == {
        "folder/a/deep/er/y.webm": "transcripts/a/deep/er/y.webm.srt",
        "folder/b.mp4": "videos/b.srt",
        "folder/c.MP4": "transcripts/c.MP4.srt",
    }
    spoken = read_subtitles(videos.parent / "transcripts" / "c.MP4.srt")
    assert [(line.start_s, line.end_s, line.text) for line in spoken] == [(0.5, 1.25, "said in c.MP4")]
    transcribed = [Path(path).name for _, path, _ in whisper]
    assert transcribed.count("c.MP4") == 1 and transcribed.count("y.webm") == 1 and "b.mp4" not in transcribed
    assert {(name, language) for name, _, language in whisper} == {("small", "en")}


def test_transcripts_read_back_as_they_were_spoken(tmp_path: Path) -> None:
    pieces = [Spoken(0.0, 0.0004, "a"), Spoken(3599.9996, 3600.5, " two\n\nlines "), Spoken(7.0, 6.0, "backwards")]
    path = tmp_path / "a.srt"
    path.write_text(srt_text(pieces), encoding="utf-8")
    read = [(line.start_s, line.end_s, line.text) for line in read_subtitles(path)]
    assert read == [(0.0, 0.0, "a"), (7.0, 7.0, "backwards"), (3600.0, 3600.5, "two lines")]
