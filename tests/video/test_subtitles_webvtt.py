"""WebVTT files: what is read, and where broken ones are refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.types import Subtitle
from longvid_train.video import read_subtitles
from longvid_train.video.webvtt import read_cues

FILE = """WEBVTT - a title
Kind: captions

NOTE written by hand
on two lines

STYLE
::cue { color: lime }

intro
00:05.250 --> 00:07.000 align:start line:0
<v Ann>hello</v> <c.loud>world</c>
Tom &amp; <i>Jerry</i> 1 < 2

01:02:03.004 --> 01:02:04.000
<00:00:01.000>über
"""
EXPECTED = [Subtitle(5.25, 7.0, "hello world\nTom & Jerry 1 < 2"), Subtitle(3723.004, 3724.0, "über")]


@pytest.mark.parametrize("content", [FILE, "\ufeff" + FILE, FILE.replace("\n", "\r\n"), FILE.rstrip(), FILE + "\n\n"])
def test_cues_are_read_without_tags_notes_and_styles(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.vtt"
    path.write_bytes(content.encode())
    assert read_subtitles(path) == EXPECTED


def test_a_cue_may_be_named_like_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.vtt"
    path.write_text("WEBVTT\n\nNOTEBOOK\n00:01.000 --> 00:02.000\na\n\nNOTE\n00:03.000 is a comment\n")
    assert read_subtitles(path) == [Subtitle(1.0, 2.0, "a")]


def test_cues_are_sorted_by_start(tmp_path: Path) -> None:
    path = tmp_path / "a.VTT"
    path.write_text("WEBVTT\n\n00:05.000 --> 00:06.000\nb\n\n00:01.000 --> 00:02.000\na\n")
    assert [subtitle.text for subtitle in read_subtitles(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a\.vtt:1: a WebVTT file starts with 'WEBVTT'"),
        ("1\n00:00:01,000 --> 00:00:02,000\na\n", r"a\.vtt:1: a WebVTT file starts with 'WEBVTT'"),
        ("WEBVTTX\n", r"a\.vtt:1: a WebVTT file starts"),
        ("WEBVTT\n\n00:01,000 --> 00:02,000\na\n", r"a\.vtt:3: expected 'HH:MM:SS\.mmm"),
        ("WEBVTT\n\nname\n\n00:01.000 --> 00:02.000\na\n", r"a\.vtt:4: expected"),
        ("WEBVTT\n\nname\n00:61.000 --> 00:62.000\na\n", r"a\.vtt:4: expected"),
        ("WEBVTT\n\n00:03.000 --> 00:02.000\na\n", r"a\.vtt:3: the subtitle ends before it starts"),
    ],
)
def test_broken_files_are_refused_with_file_and_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.vtt"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_subtitles(path)


milliseconds = st.integers(0, 100 * 3600 * 1000 - 1)


@given(st.lists(st.tuples(milliseconds, milliseconds), max_size=6), st.booleans())
def test_times_are_exact(times: list[tuple[int, int]], short: bool) -> None:
    def stamp(time_ms: int) -> str:
        seconds, rest = divmod(time_ms, 1000)
        text = f"{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"
        return text if short and seconds < 3600 else f"{seconds // 3600:02d}:{text}"

    lines = ["WEBVTT"]
    for first, second in times:
        lines += ["", f"{stamp(min(first, second))} --> {stamp(max(first, second))}", "x"]
    cues = list(read_cues("a.vtt", lines))
    assert [(round(start * 1000), round(end * 1000)) for _, start, end, _ in cues] == [tuple(sorted(t)) for t in times]
    assert [line for line, *_ in cues] == [3 + 3 * number for number in range(len(times))]
