"""MovieNet's files of one movie, by its IMDb id, and its video and subtitles made ready for manifests.

Layout (movienet.github.io, opendatalab.com/OpenDataLab/MovieNet): ``files/`` holds ``shot/ID.txt``,
``subtitle/ID.srt``, ``script/ID.script``, ``meta/ID.json`` and ``annotation/ID.json``;
``movie1K.keyframes.240p.v1.zip`` unpacks to one ``ID.tar`` a movie (or folders ``ID/``) of ``shot_0000_img_0.jpg``.
Synopses are not in the archives: put them into ``files/synopsis/ID.txt``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.media import MediaFolder
from data_prep.movies.key_frame_video import write_key_frame_video
from data_prep.movies.pictures import in_order, read_pictures
from data_prep.movies.shots import read_shots
from data_prep.movies.spoken import movie_subtitles
from data_prep.movies.story import story_text
from data_prep.movies.timing import frame_rate
from data_prep.outcome import BadRecordError, MissingMediaError
from data_prep.reading.inputs import InputFile
from longvid_train.errors import UserError
from longvid_train.files import sha256_file, write_json, write_text
from longvid_train.types import Subtitle
from longvid_train.video import probe
from longvid_train.world.encode import write_srt

TEXT_KINDS = {
    "shot": ".txt",
    "subtitle": ".srt",
    "script": ".script",
    "synopsis": ".txt",
    "meta": ".json",
    "annotation": ".json",
}
"""Folder of each kind of text -> suffix of its files."""

_FORMAT = 1
_ID = re.compile(r"[A-Za-z0-9_.-]+")


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


@dataclass(frozen=True)
class MovieNetFolder:
    """Where the files are.

    Attributes:
        files: the folder of ``shot``, ``subtitle``, ``script``, ``meta``, ...
        key_frames: folder of ``ID.tar`` or ``ID/``; None if the movies themselves are there.
        videos: folder of the movies, ``ID.mp4`` or another suffix; used instead of key frames.
        made: folder that receives videos made of key frames and subtitles in the videos' time.
        subtitle_encoding: encoding of the ``.srt`` files.
        require_subtitles: a movie without subtitles counts as missing; False shows it without.
    """

    files: MediaFolder
    key_frames: Path | None
    videos: MediaFolder | None
    made: MediaFolder
    subtitle_encoding: str
    require_subtitles: bool

    def movies(self) -> list[str]:
        """Ids of all movies that have key frames, or a video, in the order of their names.

        Raises:
            UserError: there is none.
        """
        folder = self.videos.folder if self.videos is not None else self.key_frames
        assert folder is not None
        found = {
            path.name if path.is_dir() else path.stem for path in folder.iterdir() if not path.name.startswith(".")
        }
        if not found:
            raise UserError(f"{folder}: holds no movie")
        return sorted(found)

    def text_files(self) -> list[InputFile]:
        """Every text file there is of those movies, in a fixed order."""
        paths = [
            self.files.folder / kind / f"{movie}{end}" for movie in self.movies() for kind, end in TEXT_KINDS.items()
        ]
        return [InputFile(path) for path in paths if path.is_file()]

    def movie(self, movie_id: str) -> "Movie":
        """One movie's files.

        Raises:
            BadRecordError: the id cannot name files.
        """
        if _ID.fullmatch(movie_id) is None or ".." in movie_id:
            raise BadRecordError("the movie's id cannot name a file", repr(movie_id)[:80])
        return Movie(self, movie_id)


@dataclass(frozen=True)
class Movie:
    """One movie; its files are read when they are asked for."""

    folder: MovieNetFolder
    id: str

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """``meta/ID.json``, which every movie has."""
        meta = self._json("meta")
        if meta is None:
            raise MissingMediaError("the meta file is missing", str(self._file("meta")))
        return meta

    @cached_property
    def annotation(self) -> Mapping[str, Any] | None:
        """``annotation/ID.json``, None if there is none."""
        return self._json("annotation")

    @property
    def title(self) -> str:
        """The title without the year behind it."""
        title = self.meta.get("title")
        return re.sub(r"\s*\(\d{4}\)\s*$", "", title) if isinstance(title, str) else ""

    @property
    def script_path(self) -> str | None:
        """Path of ``script/ID.script`` for rows, None if there is none."""
        return self._row_path("script")

    @property
    def synopsis_path(self) -> str | None:
        """Path of ``synopsis/ID.txt`` for rows, None if there is none."""
        return self._row_path("synopsis")

    @property
    def subtitle_file(self) -> Path:
        """``subtitle/ID.srt``, which may not exist."""
        return self._file("subtitle")

    def ready(self) -> ReadyMovie:
        """The movie's video and subtitles, made if they are not there yet or were made of other files.

        Raises:
            MissingMediaError: key frames, shots or the video are missing, or the subtitles where they are required.
            BadRecordError: one of the files is broken, or they do not fit together.
        """
        has_subtitles = self.subtitle_file.is_file()
        if not has_subtitles and self.folder.require_subtitles:
            raise MissingMediaError("the subtitles are missing", str(self.subtitle_file))
        return (
            self._from_video(has_subtitles) if self.folder.videos is not None else self._from_key_frames(has_subtitles)
        )

    def _from_video(self, has_subtitles: bool) -> ReadyMovie:
        assert self.folder.videos is not None
        video = self.folder.videos.find_any(self.id)
        path = self.folder.videos.folder / Path(video).name
        try:
            info = probe(path)
        except UserError as error:
            raise BadRecordError("the video cannot be read", str(error)) from error
        if has_subtitles:
            self._write_subtitles(self._subtitles(origin_s=0.0, end_s=info.duration_s))
        facts = {"frames": info.frame_count, "fps": round(info.frame_count / info.duration_s, 6), "fps_from": "video"}
        return ReadyMovie(video, self._made_subtitles(has_subtitles), 0.0, info.duration_s, facts)

    def _from_key_frames(self, has_subtitles: bool) -> ReadyMovie:
        record_file = self.folder.made.folder / f"{self.id}.json"
        order = self._order(has_subtitles)
        facts = _kept_record(record_file, order)
        if facts is None:
            facts = self._make(has_subtitles)
            write_json(record_file, {"order": order, "facts": facts})
        return ReadyMovie(
            self.folder.made.row_path(f"{self.id}.mp4"),
            self._made_subtitles(has_subtitles),
            facts["origin_s"],
            facts["duration_s"],
            {name: facts[name] for name in ("frames", "fps", "fps_from")},
        )

    def _make(self, has_subtitles: bool) -> dict[str, Any]:
        assert self.folder.key_frames is not None
        shots = read_shots(self._file("shot"))
        frames = shots[-1].last + 1
        rate = frame_rate(self.meta, self.annotation, frames)
        pictures = in_order(shots, read_pictures(self.folder.key_frames, self.id), self.id)
        times_s = [Fraction(frame) / rate.fps for frame, _ in pictures]
        origin_s, end_s = float(times_s[0]), float(frames / rate.fps)
        subtitles = self._subtitles(origin_s, end_s) if has_subtitles else []
        target = self.folder.made.folder / f"{self.id}.mp4"
        write_key_frame_video(target, [raw for _, raw in pictures], times_s, frames / rate.fps)
        if has_subtitles:
            self._write_subtitles(subtitles)
        return {
            "frames": len(pictures),
            "fps": round(float(rate.fps), 6),
            "fps_from": rate.known_from,
            "origin_s": origin_s,
            "duration_s": end_s - origin_s,
        }

    def _subtitles(self, origin_s: float, end_s: float) -> list[Subtitle]:
        encoding = self.folder.subtitle_encoding
        return movie_subtitles(self.subtitle_file, origin_s=origin_s, end_s=end_s, encoding=encoding)

    def _write_subtitles(self, subtitles: list[Subtitle]) -> None:
        write_srt(self.folder.made.folder / f"{self.id}.srt", subtitles)

    def _made_subtitles(self, has_subtitles: bool) -> str | None:
        return self.folder.made.row_path(f"{self.id}.srt") if has_subtitles else None

    def _order(self, has_subtitles: bool) -> dict[str, Any]:
        """What the made files depend on; key frames by size and time of change, since they are gigabytes."""
        assert self.folder.key_frames is not None
        texts = [self._file("shot"), self._file("meta"), self._file("annotation")]
        texts += [self.subtitle_file] if has_subtitles else []
        archive = self.folder.key_frames / f"{self.id}.tar"
        pictures = archive if archive.is_file() else self.folder.key_frames / self.id
        status = pictures.stat() if pictures.exists() else None
        return {
            "format": _FORMAT,
            "texts": {path.parent.name: sha256_file(path) for path in texts if path.is_file()},
            "key_frames": status and [status.st_size, status.st_mtime_ns],
            "subtitle_encoding": self.folder.subtitle_encoding,
        }

    def _file(self, kind: str) -> Path:
        return self.folder.files.folder / kind / f"{self.id}{TEXT_KINDS[kind]}"

    def _row_path(self, kind: str) -> str | None:
        path = self._file(kind)
        return self.folder.files.row_path(f"{kind}/{path.name}") if path.is_file() else None

    def _json(self, kind: str) -> Mapping[str, Any] | None:
        path = self._file(kind)
        try:
            value = json.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as error:
            raise BadRecordError(f"the {kind} file is broken", f"{path}:{error.lineno}: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise BadRecordError(f"the {kind} file is broken", f"{path}: {error}") from error
        if not isinstance(value, dict):
            raise BadRecordError(f"the {kind} file is broken", f"{path}: it must hold one JSON object")
        return value


def synopsis_path(movie: Movie) -> str | None:
    """Path for rows of the movie's synopsis: the user's own, else the annotated story, written under ``made``."""
    if movie.synopsis_path is not None:
        return movie.synopsis_path
    story = story_text(movie.annotation)
    if not story:
        return None
    name = f"{movie.id}.synopsis.txt"
    write_text(movie.folder.made.folder / name, story + "\n")
    return movie.folder.made.row_path(name)


def _kept_record(path: Path, order: Mapping[str, Any]) -> dict[str, Any] | None:
    """The facts of a video made of the same files, if it is still there."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    same = record["order"] == order and path.with_suffix(".mp4").is_file()
    return dict(record["facts"]) if same else None
