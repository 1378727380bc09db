"""SubRip files: what is read, and where broken ones are refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.types import Subtitle
from longvid_train.video import read_subtitles

TWO = "1\n00:00:01,000 --> 00:00:02,500\nhello\nworld\n\n2\n01:02:03,004 --> 01:02:04,000\nüber\n"
EXPECTED = [Subtitle(1.0, 2.5, "hello\nworld"), Subtitle(3723.004, 3724.0, "über")]


@pytest.mark.parametrize(
    "content", [TWO, "\ufeff" + TWO, TWO.replace("\n", "\r\n"), "\n\n" + TWO + "\n\n", TWO.rstrip()]
)
def test_blocks_are_read_with_any_line_ends_and_a_byte_order_mark(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes(content.encode())
    assert read_subtitles(path) == EXPECTED


def test_subtitles_are_sorted_by_start(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_text("1\n00:00:05,000 --> 00:00:06,000\nb\n\n2\n00:00:01,000 --> 00:00:02,000\na\n")
    assert [subtitle.text for subtitle in read_subtitles(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x\n00:00:01,000 --> 00:00:02,000\na\n", r"a\.srt:1: 'x' is not a subtitle number"),
        ("1\n00:00:01 --> 00:00:02\na\n", r"a\.srt:2: expected"),
        ("1\n00:00:01,000 --> 00:61:02,000\na\n", r"a\.srt:2: expected"),
        ("1\n", r"a\.srt:2: expected"),
        ("1\n00:00:03,000 --> 00:00:02,000\na\n", r"a\.srt:2: the subtitle ends before it starts"),
        (TWO + "\nthree\n", r"a\.srt:10: 'three'"),
    ],
)
def test_broken_blocks_are_refused_with_their_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_subtitles(path)


def test_missing_files_and_other_encodings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.srt: cannot be read"):
        read_subtitles(tmp_path / "none.srt")
    (tmp_path / "latin.srt").write_bytes("1\n00:00:01,000 --> 00:00:02,000\nüber\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.srt: byte 32 is not UTF-8"):
        read_subtitles(tmp_path / "latin.srt")


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**5)), max_size=8))
def test_times_survive_to_the_millisecond(
    tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, int]]
) -> None:
    def stamp(ms: int) -> str:
        return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"

    blocks = [f"{k}\n{stamp(start)} --> {stamp(start + length)}\nt\n" for k, (start, length) in enumerate(spans)]
    path = tmp_path_factory.mktemp("srt") / "a.srt"
    path.write_text("\n".join(blocks))
    read = read_subtitles(path)
    assert [round(s.start_s * 1000) for s in read] == sorted(start for start, _ in spans)
    assert sorted(round(s.end_s * 1000) for s in read) == sorted(start + length for start, length in spans)
