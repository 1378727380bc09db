"""A movie's video and subtitles, made ready for manifests once and kept until a file they come from changes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from data_prep.movies.key_frame_video import write_key_frame_video
from data_prep.movies.movienet_folder import Movie
from data_prep.movies.pictures import in_order, read_pictures
from data_prep.movies.shots import read_shots
from data_prep.movies.spoken import movie_subtitles
from data_prep.movies.timing import frame_rate
from data_prep.outcome import BadRecordError, MissingMediaError
from longvid_train.errors import UserError
from longvid_train.files import sha256_file, write_json
from longvid_train.types import Subtitle
from longvid_train.video import probe
from longvid_train.world.encode import write_srt

_FORMAT = 1


@dataclass(frozen=True)
class ReadyMovie:
    """A movie that rows can show.

    Attributes:
        video: path for rows.
        subtitles: path for rows, None if the movie has none.
        origin_s: time in the movie at which the video starts: that of the first key frame; 0 for a movie's own file.
        duration_s: length of the video.
        facts: for ``meta``: frames, and frames a second with what tells them.
    """

    video: str
    subtitles: str | None
    origin_s: float
    duration_s: float
    facts: Mapping[str, Any]


def ready_movie(movie: Movie) -> ReadyMovie:
    """The movie's video and subtitles; what is made of key frames and subtitles stands under ``made``.

    Raises:
        MissingMediaError: key frames, shots or the video are missing, or the subtitles where they are required.
        BadRecordError: one of the files is broken, or they do not fit together.
    """
    has_subtitles = movie.text_file("subtitle").is_file()
    if not has_subtitles and movie.folder.require_subtitles:
        raise MissingMediaError("the subtitles are missing", str(movie.text_file("subtitle")))
    video, made = _video(movie), movie.folder.made
    files = [made.folder / f"{movie.id}.srt"] if has_subtitles else []
    files += [made.folder / f"{movie.id}.mp4"] if video is None else []
    record_file, order = made.folder / f"{movie.id}.json", _order(movie, video, has_subtitles)
    facts = _kept_facts(record_file, order, files)
    if facts is None:
        make = _make_from_key_frames if video is None else _make_from_video
        facts = make(movie, has_subtitles)
        write_json(record_file, {"order": order, "facts": facts})
    return ReadyMovie(
        video=made.row_path(f"{movie.id}.mp4") if video is None else video,
        subtitles=made.row_path(f"{movie.id}.srt") if has_subtitles else None,
        origin_s=facts["origin_s"],
        duration_s=facts["duration_s"],
        facts={name: facts[name] for name in ("frames", "fps", "fps_from")},
    )


def _video(movie: Movie) -> str | None:
    """Path for rows of the movie itself, None where key frames are shown."""
    return None if movie.folder.videos is None else movie.folder.videos.find_any(movie.id)


def _order(movie: Movie, video: str | None, has_subtitles: bool) -> dict[str, Any]:
    """What the made files depend on; key frames and videos by size and time of change, since they are gigabytes."""
    kinds = ["shot", "meta", "annotation"] if video is None else []
    kinds += ["subtitle"] if has_subtitles else []
    shown = _pictures(movie) if video is None else _video_file(movie, video)
    status = shown.stat() if shown.exists() else None
    return {
        "format": _FORMAT,
        "texts": {kind: sha256_file(path) for kind in kinds if (path := movie.text_file(kind)).is_file()},
        "shown": status and [shown.name, status.st_size, status.st_mtime_ns],
        "subtitle_encoding": movie.folder.subtitle_encoding,
    }


def _make_from_video(movie: Movie, has_subtitles: bool) -> dict[str, Any]:
    video = _video(movie)
    assert video is not None
    try:
        info = probe(_video_file(movie, video))
    except UserError as error:
        raise BadRecordError("the video cannot be read", str(error)) from error
    if has_subtitles:
        _write_subtitles(movie, _subtitles(movie, 0.0, info.duration_s))
    return {
        "frames": info.frame_count,
        "fps": round(info.frame_count / info.duration_s, 6),
        "fps_from": "video",
        "origin_s": 0.0,
        "duration_s": info.duration_s,
    }


def _make_from_key_frames(movie: Movie, has_subtitles: bool) -> dict[str, Any]:
    assert movie.folder.key_frames is not None
    shots = read_shots(movie.text_file("shot"))
    frames = shots[-1].last + 1
    rate = frame_rate(movie.meta, movie.annotation, frames)
    pictures = in_order(shots, read_pictures(movie.folder.key_frames, movie.id), movie.id)
    times_s = [Fraction(frame) / rate.fps for frame, _ in pictures]
    origin_s, end_s = float(times_s[0]), float(frames / rate.fps)
    subtitles = _subtitles(movie, origin_s, end_s) if has_subtitles else []
    target = movie.folder.made.folder / f"{movie.id}.mp4"
    write_key_frame_video(target, [raw for _, raw in pictures], times_s, frames / rate.fps)
    if has_subtitles:
        _write_subtitles(movie, subtitles)
    return {
        "frames": len(pictures),
        "fps": round(float(rate.fps), 6),
        "fps_from": rate.known_from,
        "origin_s": origin_s,
        "duration_s": end_s - origin_s,
    }


def _subtitles(movie: Movie, origin_s: float, end_s: float) -> list[Subtitle]:
    path, encoding = movie.text_file("subtitle"), movie.folder.subtitle_encoding
    return movie_subtitles(path, origin_s=origin_s, end_s=end_s, encoding=encoding)


def _write_subtitles(movie: Movie, subtitles: list[Subtitle]) -> None:
    write_srt(movie.folder.made.folder / f"{movie.id}.srt", subtitles)


def _pictures(movie: Movie) -> Path:
    assert movie.folder.key_frames is not None
    archive = movie.folder.key_frames / f"{movie.id}.tar"
    return archive if archive.is_file() else movie.folder.key_frames / movie.id


def _video_file(movie: Movie, video: str) -> Path:
    assert movie.folder.videos is not None
    return movie.folder.videos.folder / Path(video).name


def _kept_facts(record_file: Path, order: Mapping[str, Any], files: list[Path]) -> dict[str, Any] | None:
    """The facts of an earlier run, if it made the same of the same files and they are still there."""
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    same = record["order"] == order and all(path.is_file() for path in files)
    return dict(record["facts"]) if same else None
