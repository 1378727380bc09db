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
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.media import MediaFolder
from data_prep.movies.story import story_text
from data_prep.outcome import BadRecordError, MissingMediaError
from data_prep.reading.inputs import InputFile
from longvid_train.errors import UserError
from longvid_train.files import write_text

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
            raise MissingMediaError("the meta file is missing", str(self.text_file("meta")))
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

    def text_file(self, kind: str) -> Path:
        """Where a text of `TEXT_KINDS` is, or would be."""
        return self.folder.files.folder / kind / f"{self.id}{TEXT_KINDS[kind]}"

    def _row_path(self, kind: str) -> str | None:
        path = self.text_file(kind)
        return self.folder.files.row_path(f"{kind}/{path.name}") if path.is_file() else None

    def _json(self, kind: str) -> Mapping[str, Any] | None:
        path = self.text_file(kind)
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
