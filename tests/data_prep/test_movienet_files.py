"""MovieNet's files: shots, key frames as a video with exact times, subtitles in that video's time, frame rates."""

import json
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.media import MediaFolder
from data_prep.movies.key_frame_video import write_key_frame_video
from data_prep.movies.movienet_folder import Movie, MovieNetFolder
from data_prep.movies.pictures import in_order, read_pictures
from data_prep.movies.ready import ready_movie
from data_prep.movies.shots import Shot, read_shots
from data_prep.movies.spoken import movie_subtitles
from data_prep.movies.story import story_segments, story_text
from data_prep.movies.timing import frame_rate
from data_prep.outcome import BadRecordError, MissingMediaError
from longvid_train.data.subtitles import lines_after_frames
from longvid_train.types import Subtitle
from longvid_train.video import AtTimes, UniformFrames, probe, read_clip, read_subtitles
from longvid_train.world.encode import srt_text, write_mp4
from tests.data_prep.movienet_layout import (
    ANNOTATION,
    KEY_FRAMES,
    META,
    SHOTS,
    MovieNetLayout,
    grey,
    jpeg,
    shot_pictures,
)

ALL = UniformFrames(count=10_000, at_most=True)
FPS = Fraction(24)


@pytest.fixture
def layout(tmp_path: Path) -> MovieNetLayout:
    return MovieNetLayout(tmp_path)


def folder_of(layout: MovieNetLayout, **changes: Any) -> MovieNetFolder:
    layout.made.mkdir(exist_ok=True)
    manifest = layout.root / "movies.jsonl"
    values: dict[str, Any] = {
        "files": MediaFolder.open(layout.files, manifest, "text"),
        "key_frames": layout.key_frames,
        "videos": None,
        "made": MediaFolder.open(layout.made, manifest, "video"),
        "subtitle_encoding": "utf-8-sig",
        "require_subtitles": True,
        **changes,
    }
    return MovieNetFolder(**values)


def movie_of(layout: MovieNetLayout, **changes: Any) -> Movie:
    return folder_of(layout, **changes).movie("tt0000001")


def test_key_frames_become_a_video_with_their_own_times_and_pixels(layout: MovieNetLayout) -> None:
    layout.movie("tt0000001")
    ready = ready_movie(movie_of(layout))
    clip = read_clip(layout.root / ready.video, ALL)
    expected_s = [(frame - KEY_FRAMES[0]) / 24 for frame in KEY_FRAMES]
    assert clip.timestamps_s == pytest.approx(expected_s, abs=1 / 90_000)
    assert clip.duration_s == pytest.approx((240 - 12) / 24, abs=1 / 90_000)
    assert np.abs(clip.frames.mean(axis=(1, 2, 3)) - [grey(frame) for frame in KEY_FRAMES]).max() < 1.5
    assert ready.video == "made/tt0000001.mp4" and ready.subtitles == "made/tt0000001.srt"
    assert (ready.origin_s, ready.duration_s) == (0.5, 9.5)
    assert ready.facts == {"frames": 8, "fps": 24.0, "fps_from": "annotation"}


def test_the_jpeg_files_themselves_are_the_packets(tmp_path: Path) -> None:
    """Noise would not survive being encoded again."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 16, 24, 3), dtype=np.uint8)
    pictures = [jpeg(pixels) for pixels in noise]
    write_key_frame_video(tmp_path / "a.mp4", pictures, [Fraction(n) for n in range(3)], Fraction(4))
    raw = (tmp_path / "a.mp4").read_bytes()
    assert all(picture in raw for picture in pictures)
    assert (probe(tmp_path / "a.mp4").width, probe(tmp_path / "a.mp4").height) == (24, 16)


@settings(max_examples=25, deadline=None)
@given(gaps=st.lists(st.integers(1, 20_000), min_size=1, max_size=8), rate=st.sampled_from(["24000/1001", "25", "30"]))
def test_any_frame_is_found_at_its_time(tmp_path_factory: pytest.TempPathFactory, gaps: list[int], rate: str) -> None:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    frames = np.cumsum([7, *gaps]).tolist()
    times_s = [Fraction(frame) / Fraction(rate) for frame in frames]
    pictures = [jpeg(np.full((16, 16, 3), 20 * number, np.uint8)) for number in range(len(frames))]
    write_key_frame_video(path, pictures, times_s, times_s[-1] + 1)
    shown_s = [float(time_s - times_s[0]) for time_s in times_s]
    clip = read_clip(path, AtTimes(times_s=tuple(reversed(shown_s))))
    assert clip.timestamps_s == pytest.approx(shown_s[::-1], abs=1 / 90_000)
    assert np.round(clip.frames.mean(axis=(1, 2, 3)) / 20).tolist() == list(range(len(frames)))[::-1]


def test_subtitles_stand_behind_the_frames_they_were_spoken_over(layout: MovieNetLayout) -> None:
    """'Hello there' is said from 0.4 s on: the first key frame, at 0.5 s of the movie, is 0 s of the video."""
    layout.movie("tt0000001")
    ready = ready_movie(movie_of(layout))
    assert ready.subtitles is not None
    lines = read_subtitles(layout.root / ready.subtitles)
    assert lines == [Subtitle(0.0, 0.7, "Hello there"), Subtitle(2.5, 4.5, "Who is it?")]
    clip = read_clip(layout.root / ready.video, ALL)
    behind = lines_after_frames(lines, clip.timestamps_s.tolist())
    assert [number for number, texts in enumerate(behind) if texts] == [0, KEY_FRAMES.index(98)]


def test_the_running_time_gives_the_rate_where_no_segment_does(layout: MovieNetLayout) -> None:
    layout.movie("tt0000001", annotation={"story": []}, meta={**META, "version": [{"runtime": "1 min"}]})
    layout.shots("tt0000001", [*SHOTS[:2], (51, 1499, (98, 145, 192))])
    ready = ready_movie(movie_of(layout))
    assert ready.facts == {"frames": 8, "fps": 25.0, "fps_from": "runtime"}
    assert ready.duration_s == pytest.approx(60 - 12 / 25)


@pytest.mark.parametrize(
    ("seconds", "fps"),
    [(8.0, Fraction(24)), (8.008, Fraction(24000, 1001)), (7.68, Fraction(25)), (7.2, Fraction(192) / Fraction(7.2))],
)
def test_segments_give_the_rate_snapped_to_the_standard_ones(seconds: float, fps: Fraction) -> None:
    story = [
        {"frame": [0, 48], "duration": [0.0, 1.9]},
        {"frame": [100, 192], "duration": [4.0, seconds]},
        {"frame": None, "duration": [0.0, 100.0]},
    ]
    rate = frame_rate(META, {"story": story}, 240)
    assert (rate.fps, rate.known_from) == (fps, "annotation")


@pytest.mark.parametrize(
    ("meta", "message"),
    [({"version": []}, "frame rate is unknown"), ({"version": [{"runtime": "2 min"}]}, "not that of a movie")],
)
def test_a_rate_that_cannot_be_is_refused(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecordError) as caught:
        frame_rate(meta, None, 240)
    assert message in caught.value.reason


def test_what_was_made_is_kept_until_a_file_changes(layout: MovieNetLayout) -> None:
    layout.movie("tt0000001")
    first = ready_movie(movie_of(layout))
    video = layout.root / first.video
    before = video.stat().st_mtime_ns
    assert ready_movie(movie_of(layout)) == first
    assert video.stat().st_mtime_ns == before
    layout.write("subtitle", "tt0000001.srt", srt_text([Subtitle(1.0, 2.0, "changed")]))
    ready_movie(movie_of(layout))
    assert video.stat().st_mtime_ns != before
    assert [line.text for line in read_subtitles(layout.made / "tt0000001.srt")] == ["changed"]


def test_a_folder_of_pictures_serves_as_well_as_an_archive(layout: MovieNetLayout) -> None:
    layout.movie("tt0000001")
    with tarfile.open(layout.key_frames / "tt0000001.tar") as archive:
        archive.extractall(layout.key_frames, filter="data")
    (layout.key_frames / "tt0000001.tar").unlink()
    (layout.key_frames / "tt0000001" / "notes.txt").write_text("not a key frame")
    assert ready_movie(movie_of(layout)).facts["frames"] == 8


def test_a_movie_file_is_shown_itself_with_subtitles_in_its_time(layout: MovieNetLayout) -> None:
    layout.movie("tt0000001")
    frames = (np.full((16, 16, 3), 40 + number, np.uint8) for number in range(50))
    write_mp4(layout.root / "movies" / "tt0000001.mp4", frames, fps=Fraction(5))
    videos = MediaFolder.open(layout.root / "movies", layout.root / "movies.jsonl", "video")
    ready = ready_movie(movie_of(layout, key_frames=None, videos=videos))
    assert (ready.video, ready.origin_s) == ("movies/tt0000001.mp4", 0.0)
    assert ready.duration_s == pytest.approx(10.0)
    subtitles = layout.made / "tt0000001.srt"
    assert [line.start_s for line in read_subtitles(subtitles)] == [0.1, 0.4, 3.0]
    before = subtitles.stat().st_mtime_ns
    assert ready_movie(movie_of(layout, key_frames=None, videos=videos)) == ready
    assert subtitles.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("lines", "where", "rule"),
    [
        ("0 47\n", 1, "expected FIRST LAST KEY"),
        ("0 47 12 24 36\n\n48 x 50\n", 3, "expected FIRST LAST KEY"),
        ("47 0 12\n", 1, "not in order"),
        ("0 47 24 12 36\n", 1, "not in order"),
        ("0 47 12 24 48\n", 1, "not in order"),
        ("0 47 12\n20 60 30\n", 2, "starts at frame 20"),
        ("\n", None, "holds no shot"),
    ],
)
def test_a_broken_shot_file_is_named_with_its_line(tmp_path: Path, lines: str, where: int | None, rule: str) -> None:
    path = tmp_path / "tt1.txt"
    path.write_text(lines)
    with pytest.raises(BadRecordError) as caught:
        read_shots(path)
    assert caught.value.detail.startswith(f"{path}:{where}: " if where else f"{path}: ") and rule in caught.value.detail


def test_shots_are_read_as_they_stand(layout: MovieNetLayout) -> None:
    assert read_shots(layout.shots("a", SHOTS)) == tuple(Shot(*shot) for shot in SHOTS)


def test_more_than_ten_thousand_shots_keep_their_order(layout: MovieNetLayout) -> None:
    """By name, shot_10000 would stand before shot_9999."""
    shots = tuple(Shot(frame, frame, (frame,)) for frame in range(10_002))
    pictures = {(number, 0): str(number).encode() for number in range(10_002)}
    assert [int(raw) for _, raw in in_order(shots, pictures, "a")] == list(range(10_002))


def test_pictures_that_do_not_match_the_shots_are_named(layout: MovieNetLayout) -> None:
    layout.movie("tt0000001")
    pictures = shot_pictures(SHOTS)
    del pictures["shot_0001_img_2.jpg"]
    pictures["shot_0003_img_0.jpg"] = pictures["shot_0000_img_0.jpg"]
    layout.tar("tt0000001", pictures)
    with pytest.raises(BadRecordError) as caught:
        ready_movie(movie_of(layout))
    assert caught.value.detail == ("tt0000001: 1 missing (shot_0001_img_2); 1 not in the shot file (shot_0003_img_0)")
    assert not list(layout.made.iterdir())


@pytest.mark.parametrize("damage", ["cut picture", "other size", "text", "cut archive"])
def test_broken_key_frames_are_named_and_leave_nothing(layout: MovieNetLayout, damage: str) -> None:
    layout.movie("tt0000001")
    pictures = shot_pictures(SHOTS)
    name = "shot_0002_img_1.jpg"
    changed = {
        "cut picture": pictures[name][:-200],
        "other size": jpeg(np.zeros((24, 44, 3), np.uint8)),
        "text": b"no picture",
        "cut archive": pictures[name],
    }
    archive = layout.tar("tt0000001", {**pictures, name: changed[damage]})
    if damage == "cut archive":
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(BadRecordError) as caught:
        ready_movie(movie_of(layout))
    assert "tt0000001" in caught.value.detail
    if damage in ("cut picture", "text"):
        assert "key frame 6" in caught.value.detail
    assert not list(layout.made.iterdir())


def test_names_that_lead_elsewhere_are_not_followed(layout: MovieNetLayout, tmp_path: Path) -> None:
    layout.tar("a", {"../../shot_0000_img_0.jpg": b"outside", "shot_0000_img_1.jpg": b"inside"})
    assert read_pictures(layout.key_frames, "a") == {(0, 0): b"outside", (0, 1): b"inside"}
    assert not list(tmp_path.parent.glob("shot_*"))
    for movie in ("../etc", "a/b", "", ".."):
        with pytest.raises(BadRecordError, match="cannot name a file"):
            folder_of(layout).movie(movie)


@pytest.mark.parametrize("kind", ["shot", "subtitle", "meta"])
def test_a_missing_file_is_a_missing_medium(layout: MovieNetLayout, kind: str) -> None:
    layout.movie("tt0000001")
    [path] = (layout.files / kind).iterdir()
    path.unlink()
    with pytest.raises(MissingMediaError) as caught:
        ready_movie(movie_of(layout))
    assert caught.value.detail == str(path)


def test_movies_without_subtitles_are_shown_if_the_user_says_so(layout: MovieNetLayout) -> None:
    layout.movie("tt0000001")
    (layout.files / "subtitle" / "tt0000001.srt").unlink()
    assert ready_movie(movie_of(layout, require_subtitles=False)).subtitles is None


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("1\n00:00:01,000 -> 00:00:02,000\nHi\n", 2, "broken"),
        ("1\n00:00:01,000 --> 00:00:02,000\nHi\n\n2\n00:00:05,000 --> 00:00:04,000\nHo\n", 6, "broken"),
        ("1\n00:00:01,000 --> 00:00:02,000\nHi\n\nx\n", 5, "broken"),
        ("1\n00:00:01,000 --> 00:00:02,000\nHi\n\n2\n00:01:11,000 --> 00:01:12,000\nLate\n", 6, "another cut"),
        ("", None, "broken"),
    ],
)
def test_broken_and_misaligned_subtitles_are_named_with_their_line(
    tmp_path: Path, text: str, line: int | None, reason: str
) -> None:
    path = tmp_path / "tt1.srt"
    path.write_text(text)
    with pytest.raises(BadRecordError) as caught:
        movie_subtitles(path, origin_s=0.5, end_s=10.0, encoding="utf-8-sig")
    assert reason in caught.value.reason
    assert caught.value.detail.startswith(f"{path}:{line}:" if line else f"{path}:")


def test_other_encodings_are_read_when_named(tmp_path: Path) -> None:
    path = tmp_path / "tt1.srt"
    path.write_bytes("1\n00:00:01,000 --> 00:00:02,000\nCafé\n".encode("cp1252"))
    assert movie_subtitles(path, origin_s=0.0, end_s=9.0, encoding="cp1252")[0].text == "Café"
    with pytest.raises(BadRecordError, match="not UTF-8"):
        movie_subtitles(path, origin_s=0.0, end_s=9.0, encoding="utf-8-sig")
    with pytest.raises(BadRecordError, match="'latin-99' is no encoding"):
        movie_subtitles(path, origin_s=0.0, end_s=9.0, encoding="latin-99")


def test_the_story_is_told_in_the_order_of_the_movie() -> None:
    assert story_text(ANNOTATION) == "A guest comes in.\n\nThe guest leaves."
    assert [segment.last_frame for segment in story_segments(ANNOTATION)] == [48, 192]


@pytest.mark.parametrize(
    "story",
    [
        "x",
        ["x"],
        [{"duration": [2.0, 1.0]}],
        [{"duration": [0.0]}],
        [{"duration": [0.0, float("nan")]}],
        [{"duration": [0.0, 1.0], "frame": "x"}],
        [{"duration": [0.0, 1.0], "description": 7}],
    ],
)
def test_a_broken_story_is_named(story: Any) -> None:
    with pytest.raises(BadRecordError, match="the annotated story is broken"):
        story_segments({"story": story})


@pytest.mark.parametrize("text", ["{", "[]", '"x"', b"\xff"])
def test_a_broken_meta_file_is_named(layout: MovieNetLayout, text: str | bytes) -> None:
    layout.movie("tt0000001")
    path = layout.write("meta", "tt0000001.json", text)
    with pytest.raises(BadRecordError) as caught:
        ready_movie(movie_of(layout))
    assert caught.value.detail.startswith(str(path))


def test_made_facts_are_json(layout: MovieNetLayout) -> None:
    layout.movie("tt0000001")
    ready_movie(movie_of(layout))
    facts = json.loads((layout.made / "tt0000001.json").read_text())["facts"]
    assert facts == {"frames": 8, "fps": 24.0, "fps_from": "annotation", "origin_s": 0.5, "duration_s": 9.5}
