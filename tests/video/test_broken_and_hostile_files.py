"""Files that are not what they seem: the right frames or one clear error that names the file, never a hang."""

import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from longvid_train.errors import UserError
from longvid_train.video import AtTimes, DecodeLimits, UniformFrames, probe, read_clip
from longvid_train.video.truncation import missing_bytes

Videos = Callable[[str], Path]
ONE = UniformFrames(count=1)


def refusal(path: Path | str, limits: DecodeLimits | None = None) -> str:
    """The one line that reading ``path`` is refused with."""
    with pytest.raises(UserError) as caught:
        read_clip(path, ONE, limits=limits or DecodeLimits())
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_missing_empty_folder_and_text(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.mp4")
    assert "not a regular file" in refusal(tmp_path)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert "the file is empty" in refusal(empty)
    text = tmp_path / "text.mp4"
    text.write_text("this is not a video\n" * 50)
    assert "not a readable video file" in refusal(text)


def test_audio_only(tmp_path: Path, make_audio: Callable[[Path], None]) -> None:
    path = tmp_path / "sound.mp4"
    make_audio(path)
    assert "no video stream in it (it holds: audio)" in refusal(path)


def cut(source: Path, target: Path, share: float) -> Path:
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


@pytest.mark.parametrize("name", ["h264_faststart", "h264_fragmented", "h264_mkv", "vp9", "h264_avi", "gif", "h264_ts"])
@pytest.mark.parametrize("share", [0.6, 0.97])
def test_a_file_cut_off_is_an_error_and_not_a_shorter_video(
    name: str, share: float, tmp_path: Path, videos: Videos
) -> None:
    message = refusal(cut(videos(name), tmp_path / f"cut{videos(name).suffix}", share))
    assert "cut off" in message
    assert "readable" in message


def test_the_readable_part_of_a_cut_file_is_told(tmp_path: Path, videos: Videos) -> None:
    message = refusal(cut(videos("h264_faststart"), tmp_path / "cut.mp4", 0.75))
    frames = int(message.split("about ")[1].split(" frames")[0])
    assert 10 <= frames <= 55


def test_an_mp4_without_its_index(tmp_path: Path, videos: Videos) -> None:
    assert "may be cut off" in refusal(cut(videos("h264_closed"), tmp_path / "cut.mp4", 0.5))


def test_whole_files_miss_no_bytes(recipe_name: str, videos: Videos) -> None:
    path = videos(recipe_name)
    assert missing_bytes(path, probe(path).container) == 0


def test_damaged_pictures(tmp_path: Path, videos: Videos) -> None:
    content = bytearray(videos("vp9").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    path = tmp_path / "damaged.webm"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_clip(path, UniformFrames(count=60))


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{other}'\n",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>{other}</BaseURL></MPD>",
    ],
)
def test_a_playlist_does_not_open_another_file(playlist: str, tmp_path: Path, videos: Videos) -> None:
    shutil.copy(videos("h264_ts"), tmp_path / "other.ts")
    path = tmp_path / "list.mp4"
    path.write_text(playlist.format(other="other.ts"))
    assert "not a readable video file" in refusal(path)


def test_urls_are_refused_and_nothing_is_connected() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.mp4"
        assert "allowed_schemes" in refusal(url)
        with pytest.raises(TimeoutError):
            server.accept()


def test_an_allowed_scheme_is_opened() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    message = refusal(f"http://127.0.0.1:{port}/a.mp4", DecodeLimits(allowed_schemes=("http",)))
    assert "Connection refused" in message


def test_a_local_name_with_a_colon_is_a_file(tmp_path: Path, videos: Videos) -> None:
    path = tmp_path / "tcp:part 1%20.mp4"
    shutil.copy(videos("h264_closed"), path)
    assert read_clip(path, ONE).frames.shape == (1, 48, 64, 3)


@pytest.mark.parametrize(
    ("setting", "value", "what"),
    [
        ("max_file_bytes", 1000, "bytes"),
        ("max_pixels_per_frame", 3000, r"3072 pixels a frame \(64x48\)"),
        ("max_duration_s", 2.0, "2.4 seconds"),
        ("max_frames", 2, "3 frames asked for"),
        ("max_output_bytes", 20_000, r"27648 bytes of output \(3 frames of 64x48 RGB\)"),
    ],
)
def test_every_ceiling_names_value_rule_and_setting(setting: str, value: float, what: str, videos: Videos) -> None:
    path, sampling = videos("h264_closed"), UniformFrames(count=3)
    limits = replace(DecodeLimits(), **{setting: value})
    with pytest.raises(UserError, match=rf"{what}.*more than limits\.{setting} = {value:g}; raise limits\.{setting}"):
        read_clip(path, sampling, limits=limits)
    assert len(read_clip(path, sampling, limits=DecodeLimits(max_frames=3, max_output_bytes=27_648)).frames) == 3


def test_ceilings_must_be_positive() -> None:
    with pytest.raises(UserError, match=r"limits\.timeout_s is 0"):
        DecodeLimits(timeout_s=0)


def test_errors_of_sampling_and_reader_name_the_file(videos: Videos) -> None:
    path = videos("h264_closed")
    with pytest.raises(UserError, match=rf"{path}: time 9 s is outside"):
        read_clip(path, AtTimes(times_s=(9.0,)))
    with pytest.raises(UserError, match="reader 'pyva' is not known; did you mean 'pyav'"):
        read_clip(path, ONE, reader="pyva")
    with pytest.raises(UserError, match="shortest_edge is 0"):
        read_clip(path, ONE, shortest_edge=0)
