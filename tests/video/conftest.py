"""Video files made on the spot, the frame number painted into every frame as a barcode of large blocks."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

BITS = 8
COLUMNS = 4


def barcode(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """``(height, width, 3)`` uint8: the 8 bits of ``number`` and, below, their complements, in a 4 x 4 grid of
    blocks."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    grid = np.array(bits + [1 - bit for bit in bits], dtype=np.uint8).reshape(COLUMNS, COLUMNS)
    rows = np.minimum(np.arange(height) * COLUMNS // height, COLUMNS - 1)
    columns = np.minimum(np.arange(width) * COLUMNS // width, COLUMNS - 1)
    gray = np.where(grid[rows][:, columns] == 1, 220, 30).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def read_barcode(frame: NDArray[np.uint8]) -> int:
    """The number painted into ``frame`` ``(height, width, 3)``; fails if the blocks and their complements disagree."""
    height, width = frame.shape[:2]
    rows = (2 * np.arange(COLUMNS) + 1) * height // (2 * COLUMNS)
    columns = (2 * np.arange(COLUMNS) + 1) * width // (2 * COLUMNS)
    gray = frame.mean(axis=2)
    blocks = np.array(
        [[gray[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2].mean() for c in columns] for r in rows]
    ).ravel()
    bits = blocks > 125
    assert (bits[:BITS] != bits[BITS:]).all(), "the barcode is not readable"
    return int(sum(int(bit) << place for place, bit in enumerate(bits[:BITS])))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make one file."""

    suffix: str
    codec: str
    frames: int = 60
    width: int = 64
    height: int = 48
    rate: int = 25
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    gaps: bool = False
    rotation: int = 0

    def pts(self) -> list[int]:
        """Presentation times in ``1 / (rate * 4)`` s: every 4, with irregular gaps if asked for."""
        steps = [4 + (3 * (k * k % 5) if self.gaps else 0) for k in range(self.frames)]
        return [sum(steps[:k]) for k in range(self.frames)]


def write_video(path: Path, recipe: Recipe) -> None:
    """Encode ``recipe`` to ``path``."""
    with av.open(str(path), "w", options=recipe.container_options) as container:
        stream = container.add_stream(recipe.codec, rate=recipe.rate, options=recipe.options)
        stream.width, stream.height, stream.pix_fmt = recipe.width, recipe.height, recipe.pixels
        stream.codec_context.thread_count = 1
        variable = recipe.gaps
        if variable:
            stream.codec_context.time_base = Fraction(1, recipe.rate * 4)
        if recipe.rotation:
            stream.set_display_rotation(recipe.rotation)
        for number, pts in enumerate(recipe.pts()):
            frame = av.VideoFrame.from_ndarray(barcode(number, recipe.width, recipe.height), format="rgb24")
            frame.pts = pts if variable else number
            frame.time_base = Fraction(1, recipe.rate * 4) if variable else Fraction(1, recipe.rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


X264 = {"preset": "veryfast", "threads": "1", "sc_threshold": "0"}
RECIPES = {
    "h264_closed": Recipe(suffix=".mp4", codec="libx264", options={**X264, "g": "12", "bf": "3"}),
    "h264_open": Recipe(
        suffix=".mp4", codec="libx264", options={**X264, "g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}
    ),
    "h264_one_gop": Recipe(suffix=".mp4", codec="libx264", options={**X264, "g": "250", "bf": "3"}),
    "h264_intra": Recipe(suffix=".mp4", codec="libx264", frames=20, options={**X264, "g": "1"}),
    "h264_faststart": Recipe(
        suffix=".mp4", codec="libx264", options={**X264, "g": "12"}, container_options={"movflags": "faststart"}
    ),
    "h264_fragmented": Recipe(
        suffix=".mp4",
        codec="libx264",
        options={**X264, "g": "12", "bf": "2"},
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof"},
    ),
    "h264_vfr": Recipe(suffix=".mp4", codec="libx264", gaps=True, options={**X264, "g": "12", "bf": "3"}),
    "h264_odd": Recipe(
        suffix=".mp4", codec="libx264", width=67, height=51, pixels="yuv444p", options={**X264, "g": "12"}
    ),
    "h264_one_frame": Recipe(suffix=".mp4", codec="libx264", frames=1, options=X264),
    "h264_two_frames": Recipe(suffix=".mp4", codec="libx264", frames=2, options=X264),
    "h264_mkv": Recipe(suffix=".mkv", codec="libx264", options={**X264, "g": "12", "bf": "3"}),
    "h264_open_mkv": Recipe(
        suffix=".mkv", codec="libx264", options={**X264, "g": "12", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}
    ),
    "h264_vfr_mkv": Recipe(suffix=".mkv", codec="libx264", gaps=True, options={**X264, "g": "12", "bf": "3"}),
    "h264_mov": Recipe(suffix=".mov", codec="libx264", options={**X264, "g": "12", "bf": "3"}),
    "h264_avi": Recipe(suffix=".avi", codec="libx264", options={**X264, "g": "12", "bf": "3"}),
    "h264_ts": Recipe(suffix=".ts", codec="libx264", options={**X264, "g": "12", "bf": "3"}),
    "h264_raw": Recipe(suffix=".h264", codec="libx264", options={**X264, "g": "12", "bf": "2"}),
    "hevc": Recipe(
        suffix=".mp4",
        codec="libx265",
        options={"preset": "ultrafast", "x265-params": "keyint=12:bframes=3:log-level=none:pools=none:frame-threads=1"},
    ),
    "hevc_ts": Recipe(
        suffix=".ts",
        codec="libx265",
        options={"preset": "ultrafast", "x265-params": "keyint=12:bframes=3:log-level=none:pools=none:frame-threads=1"},
    ),
    "mpeg4": Recipe(suffix=".mp4", codec="mpeg4", options={"g": "12", "bf": "2", "q": "3"}),
    "mpeg4_avi": Recipe(suffix=".avi", codec="mpeg4", options={"g": "12", "bf": "2"}),
    "vp8": Recipe(
        suffix=".webm",
        codec="libvpx",
        options={
            "g": "12",
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
            "deadline": "good",
            "cpu-used": "4",
            "b": "100k",
        },
    ),
    "vp9": Recipe(
        suffix=".webm", codec="libvpx-vp9", options={"g": "12", "deadline": "realtime", "cpu-used": "8", "b": "200k"}
    ),
    "vp9_mp4": Recipe(
        suffix=".mp4",
        codec="libvpx-vp9",
        options={"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "6", "b": "200k"},
    ),
    "av1": Recipe(
        suffix=".mp4",
        codec="libsvtav1",
        frames=40,
        options={"preset": "12", "g": "12", "crf": "30", "svtav1-params": "lp=1"},
    ),
    "av1_mkv": Recipe(
        suffix=".mkv",
        codec="libsvtav1",
        frames=40,
        options={"preset": "12", "g": "12", "crf": "30", "svtav1-params": "lp=1"},
    ),
    "gif": Recipe(suffix=".gif", codec="gif", frames=30, pixels="rgb8", rate=10),
    "mpeg2_ps": Recipe(suffix=".mpg", codec="mpeg2video", options={"g": "12", "bf": "2"}),
    "rotated_90": Recipe(suffix=".mp4", codec="libx264", rotation=90, options={**X264, "g": "12"}),
    "rotated_180": Recipe(suffix=".mp4", codec="libx264", rotation=180, options={**X264, "g": "12"}),
    "rotated_270": Recipe(suffix=".mp4", codec="libx264", rotation=270, options={**X264, "g": "12"}),
}


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """Undo what SVT-AV1 does for root: the thread that opens it becomes a real-time one, which all others of the
    machine wait for, and every process that it starts is one too."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    os.sched_setscheduler(0, *before)


def write_edited(path: Path, source: Path, hidden: int, ticks_per_frame: int) -> None:
    """Remux ``source`` with an edit list that hides its first ``hidden`` frames."""
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                assert packet.pts is not None and packet.dts is not None
                packet.pts -= hidden * ticks_per_frame
                packet.dts -= hidden * ticks_per_frame
                packet.stream = stream
                new.mux(packet)


def write_audio(path: Path) -> None:
    """One second of silence in an MP4 without video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``videos(name)``: the path of a recipe's file, made on first use."""
    folder = tmp_path_factory.mktemp("videos")

    def get(name: str) -> Path:
        path = folder / (name + RECIPES[name].suffix)
        if not path.exists():
            with scheduling_kept():
                write_video(path, RECIPES[name])
        return path

    return get


@pytest.fixture(scope="session")
def recipes() -> dict[str, Recipe]:
    return RECIPES


@pytest.fixture(scope="session")
def barcode_of() -> Callable[[NDArray[np.uint8]], int]:
    return read_barcode


@pytest.fixture(scope="session")
def make_edited() -> Callable[[Path, Path, int, int], None]:
    return write_edited


@pytest.fixture(scope="session")
def make_audio() -> Callable[[Path], None]:
    return write_audio


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every test with a ``recipe_name`` argument all recipes, one test each."""
    if "recipe_name" in metafunc.fixturenames:
        metafunc.parametrize("recipe_name", sorted(RECIPES))
