"""``longvid frames``: the PNGs, the JSON, and what is refused."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from longvid_train.cli import main


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 10 fps, 64x48, frame k painted in grey 20 + 5 k."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "8", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(40):
            pixels = np.full((48, 64, 3), 20 + 5 * k, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def numbers(paths: list[str]) -> list[int]:
    return [round((float(np.asarray(Image.open(path)).mean()) - 20) / 5) for path in paths]


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["frames", *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert isinstance(printed, dict)
    return printed


def test_uniform_frames_are_written_and_described(
    ramp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run_json(capsys, str(ramp), "--frames", "4", "--out", str(tmp_path / "out"))
    names = [f"frame_{k:06d}.png" for k in range(4)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert printed["frames"] == [str(tmp_path / "out" / name) for name in names]
    assert numbers(printed["frames"]) == [0, 13, 26, 39]  # type: ignore[arg-type]
    assert printed["timestamps_s"] == pytest.approx([0, 1.3, 2.6, 3.9])
    assert printed["duration_s"] == pytest.approx(4.0)
    assert (printed["reader"], printed["width"], printed["height"], printed["exact"]) == ("pyav", 64, 48, True)
    assert printed["sampling"] == {"kind": "UniformFrames", "count": 4, "at_most": False, "start_s": 0.0, "end_s": None}


@pytest.mark.parametrize(
    ("words", "expected", "size"),
    [
        (["--at", "1.25,0.5"], [12, 5], (64, 48)),
        (["--fps", "2", "--start", "1", "--end", "3"], [10, 15, 20, 25], (64, 48)),
        (["--fps", "5", "--max-frames", "3"], [0, 20, 39], (64, 48)),
        (["--at", "1.9", "--keyframes"], [16], (64, 48)),
        (["--frames", "2", "--shortest-edge", "24"], [0, 39], (32, 24)),
    ],
)
def test_samplings_of_the_command_line(
    words: list[str],
    expected: list[int],
    size: tuple[int, int],
    ramp: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = run_json(capsys, str(ramp), *words, "--out", str(tmp_path), "--no-isolate")
    assert numbers(printed["frames"]) == expected  # type: ignore[arg-type]
    assert (printed["width"], printed["height"]) == size
    assert Image.open(tmp_path / "frame_000000.png").size == size


def test_the_command_isolates_by_default(ramp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["frames", str(ramp), "--frames", "1", "--limits.timeout_s", "0.001", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "limits.timeout_s = 0.001" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--no-isolate"]) == 2
    assert "--limits.timeout_s has no effect with --no-isolate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "400"], "400 frames asked for"),
        (["--frames", "0"], "count is 0"),
        (["--at", "1,x"], "--at '1,x' is not a list of seconds"),
        (["--at", "7"], "time 7 s is outside"),
        (["--frames", "2", "--max-frames", "1"], "--max-frames has no effect without --fps"),
        (["--frames", "2", "--reader", "decrod"], "did you mean 'decord'"),
        (
            ["--frames", "2", "--limits.max_duration_s", "3.5"],
            "4 seconds, more than limits.max_duration_s = 3.5; raise",
        ),
        (
            ["--frames", "2", "--limits.max_file_bytes", "9"],
            "bytes, more than limits.max_file_bytes = 9; raise limits.",
        ),
        (["--frames", "2", "--limits.max_frames", "1"], "2 frames asked for, more than limits.max_frames = 1; raise"),
        (["--frames", "2", "--limits.max_frames", "0"], "limits.max_frames is 0; it must be greater than 0"),
        (["--frames", "2", "--limits.max_frame", "1"], "did you mean '--limits.max_frames'?"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    words: list[str], message: str, ramp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["frames", str(ramp), *words, "--no-isolate", "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


def test_older_frames_are_not_mixed_with_new_ones(
    ramp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "frame_000007.png").write_bytes(b"old")
    assert main(["frames", str(ramp), "--frames", "1", "--no-isolate", "--out", str(tmp_path)]) == 2
    assert "holds 1 older frames (frame_000007.png" in capsys.readouterr().err
    assert (tmp_path / "frame_000007.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
