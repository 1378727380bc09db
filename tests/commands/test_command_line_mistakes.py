"""What every command does with a mistake: one line on stderr, status 2, nothing on stdout."""

import os
from pathlib import Path

import pytest

from longvid_train.cli import main


def line_of(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line that ``longvid WORDS`` is refused with."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("longvid: ")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("longvid: ").rstrip("\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frmaes"], "'frmaes' is not a command; did you mean 'frames'? Run"),
        (["zzzz"], "'zzzz' is not a command. Run 'longvid --help'"),
        (["frames", "a.mp4", "--out", "o"], "one of the arguments --frames --fps --at is required"),
        (["frames", "a.mp4", "--frames", "x", "--out", "o"], "argument --frames: invalid int value: 'x'"),
        (
            ["frames", "a.mp4", "--frames", "1", "--out", "o", "--redaer", "pyav"],
            "--redaer pyav; did you mean '--reader'?",
        ),
        (["frames", "a.mp4", "--frames", "1", "--fps", "1", "--out", "o"], "not allowed with argument --frames"),
        (["frames", "a.mp4", "--frames", "1", "--out", "o", "--short", "9"], "did you mean '--shortest-edge'?"),
        (["world"], "the following arguments are required: --out ('longvid world --help' lists the arguments)"),
        (["report", "--out", "a.html"], "the following arguments are required: RUN"),
        (["ask"], "the following arguments are required: VIDEO_OR_IMAGE"),
        (["init", "--out", "o", "--seed", "x"], "argument --seed: invalid int value"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in line_of(capsys, words)


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a\nb.mp4")
    line = line_of(capsys, ["frames", path, "--frames", "1", "--no-isolate", "--out", str(tmp_path / "out")])
    assert "b.mp4: no such file" in line


def test_a_place_that_cannot_be_written_is_the_users_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    words = ["world", "--split", "val=1", "--duration", "2", "--out", str(tmp_path / "file" / "world")]
    assert line_of(capsys, words).startswith(f"{tmp_path / 'file'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_the_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o555)
    words = ["world", "--split", "val=1", "--duration", "2", "--out", str(tmp_path / "world")]
    assert "Permission denied" in line_of(capsys, words)
