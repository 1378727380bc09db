"""MovieNet through the command line: index, description and released question rows."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.command_line import run_source, run_tool
from data_prep.movienet import OVERVIEW_QUESTIONS, STORY_QUESTIONS
from longvid_train.data.manifest import ManifestRules, Sample, read_manifest
from longvid_train.video import UniformFrames, read_clip
from tests.data_prep.movienet_layout import ANNOTATION, META, MovieNetLayout

Run = Callable[..., tuple[int, Path]]


@pytest.fixture
def layout(tmp_path: Path) -> MovieNetLayout:
    layout = MovieNetLayout(tmp_path / "movienet")
    for movie in ("tt0000001", "tt0000002"):
        layout.movie(movie)
    layout.write("synopsis", "tt0000002.txt", "Somebody comes in and leaves again.")
    return layout


@pytest.fixture
def prepare(layout: MovieNetLayout) -> Run:
    def run(rows: str, *words: str, out: str = "out.jsonl") -> tuple[int, Path]:
        options = ["--rows", rows, "--files", str(layout.files), "--made", str(layout.made)]
        media = [] if "--videos" in words else ["--key-frames", str(layout.key_frames)]
        return run_source("movienet", [*options, *media, "--out", str(layout.root / out), *words]), layout.root / out

    return run


def rows(path: Path, **rules: Any) -> list[Sample]:
    return list(read_manifest(path, ManifestRules(**rules)))


def test_the_index_names_video_subtitles_and_texts_of_every_movie(prepare: Run, layout: MovieNetLayout) -> None:
    status, out = prepare("index")
    assert status == 0
    first, second = rows(out, require_answer=False)
    assert (first.id, first.conversation[0].text, len(first.conversation)) == ("movienet/tt0000001", "<video>", 1)
    assert (first.media[0].path, first.media[0].subtitles) == ("made/tt0000001.mp4", "made/tt0000001.srt")
    assert first.meta == {
        "imdb_id": "tt0000001",
        "title": "The Door",
        "duration_s": 9.5,
        "frames": 8,
        "fps": 24.0,
        "fps_from": "annotation",
        "genres": ["Drama"],
        "synopsis_file": "made/tt0000001.synopsis.txt",
        "script_file": "files/script/tt0000001.script",
    }
    assert (out.parent / first.meta["synopsis_file"]).read_text() == "A guest comes in.\n\nThe guest leaves.\n"
    assert second.meta["synopsis_file"] == "files/synopsis/tt0000002.txt"


def test_descriptions_show_the_segment_that_they_tell(prepare: Run, layout: MovieNetLayout) -> None:
    """The first segment is 0 to 2 s of the movie, which is 0 to 1.5 s of a video that starts at 0.5 s."""
    status, out = prepare("describe")
    assert status == 0
    overview, arrival, leaving = rows(out)[:3]
    assert overview.conversation[0].text.removeprefix("<video>\n") in OVERVIEW_QUESTIONS
    assert overview.conversation[1].text == "A door opens, and closes again."
    assert (overview.media[0].start_s, overview.media[0].end_s) == (0.0, None)
    assert arrival.conversation[0].text.removeprefix("<video>\n") in STORY_QUESTIONS
    assert arrival.conversation[1].text == "A guest comes in."
    assert (arrival.media[0].start_s, arrival.media[0].end_s) == (0.0, 1.5)
    assert (leaving.media[0].start_s, leaving.media[0].end_s) == (1.625, 7.5)
    assert [row.id.removeprefix("movienet/tt0000001/") for row in rows(out)[:3]] == ["overview", "story-0", "story-1"]


QA = [
    {
        "id": "movie_1",
        "video": "movienet/feat/tt0000002.pkl",
        "conversations": [
            {"from": "human", "value": "<image>\nWho comes in?"},
            {"from": "gpt", "value": "A guest."},
            {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "It rains."},
        ],
    },
    {"id": "text_1", "conversations": [{"from": "human", "value": "Add 1 and 2."}, {"from": "gpt", "value": "3"}]},
    {
        "id": "movie_1",
        "video": "movienet/feat/tt9999999.pkl",
        "conversations": [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "Nobody."}],
    },
]


def test_released_questions_find_their_movies(
    prepare: Run, layout: MovieNetLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = layout.root / "long_videoqa.json"
    annotations.write_text(json.dumps(QA, indent=1))
    status, _ = prepare("qa", "--annotations", str(annotations))
    assert status == 2 and "tt9999999" in capsys.readouterr().err
    status, out = prepare("qa", "--annotations", str(annotations), "--skip-missing", "1", "--json")
    assert status == 0
    assert json.loads(capsys.readouterr().out)["missing"] == {"the subtitles are missing": 1}
    movie, text = rows(out)
    assert [turn.text for turn in movie.conversation] == ["<video>\nWho comes in?", "A guest.", "Why?", "It rains."]
    assert (movie.media[0].path, movie.meta["imdb_id"]) == ("made/tt0000002.mp4", "tt0000002")
    assert (text.media, text.conversation[1].text) == ((), "3")


def test_every_key_frame_can_be_shown(prepare: Run) -> None:
    _, out = prepare("index")
    [first, _] = rows(out, require_answer=False)
    clip = read_clip(out.parent / first.media[0].path, UniformFrames(count=100_000, at_most=True))
    assert len(clip.frames) == first.meta["frames"]


def test_shards_merge_to_the_whole_and_processes_change_nothing(prepare: Run, layout: MovieNetLayout) -> None:
    _, whole = prepare("describe", out="whole.jsonl")
    shutil.rmtree(layout.made)
    for index in (1, 2):
        status, out = prepare("describe", "--shard", f"{index}/2", "--processes", "2")
        assert status == 0
    shards = [str(out.with_name(f"out.shard-{index}-of-2.jsonl")) for index in (1, 2)]
    assert run_tool("merge", [*shards, "--out", str(out)]) == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_changed_text_is_noticed(prepare: Run, layout: MovieNetLayout, capsys: pytest.CaptureFixture[str]) -> None:
    prepare("describe")
    layout.write("meta", "tt0000001.json", json.dumps({**META, "overview": "Another."}))
    status, _ = prepare("describe")
    assert status == 2 and "made with other settings or inputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "content", "told"),
    [
        ("subtitle", "1\n00:00:01,000 -> 00:00:02,000\nHi\n", "tt0000001.srt:2:"),
        ("subtitle", "1\n00:02:01,000 --> 00:02:02,000\nHi\n", "tt0000001.srt:2: a line at 121 s"),
        ("shot", "0 47 12\n48 60 70\n", "tt0000001.txt:2:"),
        ("meta", "{", "tt0000001.json:1:"),
        ("annotation", json.dumps({"story": [{**ANNOTATION["story"][0], "duration": [9, 8]}]}), "tt0000001_0001"),
    ],
)
def test_broken_files_are_named_and_skipped_by_policy_only(
    prepare: Run, layout: MovieNetLayout, capsys: pytest.CaptureFixture[str], kind: str, content: str, told: str
) -> None:
    [path] = (layout.files / kind).glob("tt0000001*")
    path.write_text(content)
    status, out = prepare("index")
    assert status == 2 and told in capsys.readouterr().err and not out.exists()
    status, out = prepare("index", "--skip-bad", "1")
    assert status == 0 and [row.meta["imdb_id"] for row in rows(out, require_answer=False)] == ["tt0000002"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("qa",), "--annotations and --rows qa go together"),
        (("story",), "invalid choice: 'story'"),
        (("index", "--files", "nowhere"), "nowhere: no such folder"),
        (("index", "--videos", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(
    prepare: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    status, _ = prepare(*words)
    told = capsys.readouterr().err
    assert status == 2 and message in told and told.count("\n") == 1


@pytest.mark.parametrize("module", ["movienet", "long_videoqa", "longalpaca"])
def test_help_shows_an_example(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"data_prep.{module}", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m data_prep.{module} --" in done.stdout and "\\\n" in done.stdout
