import hashlib
import math
import random
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.types import Subtitle
from longvid_train.world.encode import srt_text, write_mp4, write_srt
from longvid_train.world.episode import WorldSettings, make_episode
from longvid_train.world.render import render_frame

RATES = (Fraction(1), Fraction(4), Fraction(30000, 1001), Fraction(25, 2))


def episode_frames(fps: Fraction, count: int) -> list[np.ndarray]:
    episode = make_episode(WorldSettings(duration_s=max(2.0, float(count / fps))), split="test", seed=1, index=0)
    return [render_frame(episode, float(number / fps)) for number in range(count)]


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / float(np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize("fps", RATES)
def test_a_decoded_video_shows_the_frames_at_their_times(tmp_path: Path, fps: Fraction) -> None:
    wanted = episode_frames(fps, 21)
    assert write_mp4(tmp_path / "a.mp4", iter(wanted), fps=fps) == 21
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == fps
        assert stream.duration * stream.time_base == 21 / fps
        shown = list(container.decode(stream))
    assert [frame.pts * frame.time_base for frame in shown] == [number / fps for number in range(21)]
    quality_db = [psnr_db(frame.to_ndarray(format="rgb24"), want) for frame, want in zip(shown, wanted, strict=True)]
    assert np.mean(quality_db) > 30
    assert min(quality_db) > 27


def test_keyframes_come_at_least_every_gop(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", iter(episode_frames(Fraction(4), 20)), fps=Fraction(4), gop=6)
    with av.open(str(tmp_path / "a.mp4")) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert keys[0] == 0
    assert max(np.diff([*keys, 20])) <= 6


def test_the_same_frames_give_the_same_bytes_without_dates(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, iter(episode_frames(Fraction(4), 9)), fps=Fraction(4))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert "creation_time" not in container.metadata | container.streams.video[0].metadata


def test_bytes_do_not_depend_on_what_was_encoded_before(tmp_path: Path) -> None:
    """With macroblock trees some of these come out different in another order."""
    episodes = [
        make_episode(WorldSettings(duration_s=3.0 + index % 6), split="train", seed=0, index=index)
        for index in range(30)
    ]
    clips = [[render_frame(one, time / 4, 112) for time in range(int(4 * one.duration_s))] for one in episodes]
    made: dict[int, set[bytes]] = {index: set() for index in range(len(clips))}
    for seed in range(5):
        for index in random.Random(seed).sample(range(len(clips)), len(clips)):
            write_mp4(tmp_path / "a.mp4", iter(clips[index]), fps=Fraction(4))
            made[index].add(hashlib.sha256((tmp_path / "a.mp4").read_bytes()).digest())
    assert [index for index, found in made.items() if len(found) > 1] == []


def test_frames_are_taken_one_at_a_time(tmp_path: Path) -> None:
    """The encoder may look ahead in its own pictures, never hold our arrays."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    def frames():
        nonlocal most
        for number in range(60):
            picture = np.full((32, 32, 3), number, np.uint8)
            alive.append(weakref.ref(picture))
            most = max(most, sum(ref() is not None for ref in alive))
            yield picture

    write_mp4(tmp_path / "a.mp4", frames(), fps=Fraction(4))
    assert most <= 3


def test_a_failed_encode_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield np.zeros((32, 32, 3), np.uint8)
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        write_mp4(tmp_path / "a.mp4", broken(), fps=Fraction(4))
    with pytest.raises(ValueError, match="no frames"):
        write_mp4(tmp_path / "a.mp4", iter([]), fps=Fraction(4))
    uneven = [np.zeros((32, 32, 3), np.uint8), np.zeros((34, 32, 3), np.uint8)]
    with pytest.raises(ValueError, match="frame 1"):
        write_mp4(tmp_path / "a.mp4", iter(uneven), fps=Fraction(4))
    assert list(tmp_path.iterdir()) == []


BLOCK = re.compile(r"(\d+)\n(\d\d):(\d\d):(\d\d),(\d{3}) --> (\d\d):(\d\d):(\d\d),(\d{3})\n(.*)\n")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 14_400_000), st.integers(1, 5000), st.sampled_from(["the word is kite", "é"])))
)
def test_srt_reads_back(spoken: list[tuple[int, int, str]]) -> None:
    lines = [Subtitle(start / 1000, (start + length) / 1000, text) for start, length, text in spoken]
    blocks = BLOCK.findall(srt_text(lines))
    assert [int(block[0]) for block in blocks] == list(range(1, len(lines) + 1))
    for block, (start, length, text) in zip(blocks, spoken, strict=True):
        h0, m0, s0, ms0, h1, m1, s1, ms1 = map(int, block[1:9])
        assert ((h0 * 60 + m0) * 60 + s0) * 1000 + ms0 == start
        assert ((h1 * 60 + m1) * 60 + s1) * 1000 + ms1 == start + length
        assert block[9] == text


def test_srt_file_is_utf8(tmp_path: Path) -> None:
    write_srt(tmp_path / "a.srt", [Subtitle(1.5, 2.25, "é")])
    assert (tmp_path / "a.srt").read_bytes() == "1\n00:00:01,500 --> 00:00:02,250\né\n".encode()
