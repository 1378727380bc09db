r"""Stage 3 movies: MovieNet's key frames, subtitles, scripts and descriptions.

Layout (movienet.github.io, opendatalab.com/OpenDataLab/MovieNet): MovieNet.tar.gz unpacks to files/{subtitle,script,
meta,annotation}/tt0120338.{srt,script,json,json}; shot.zip to files/shot/tt0120338.txt ("FIRST LAST KEY KEY KEY" a
shot); movie1K.keyframes.240p.v1.zip to one tt0120338.tar a movie of shot_0000_img_0.jpg, ... Synopses are not in the
archives: put them into files/synopsis/tt0120338.txt.

Key frames become an MP4 a movie (the JPEG files as they are, each at its own time), and the subtitles are written in
that video's time, both under --made. With --videos the movies themselves are shown.

rows:
  index     every movie once: a turn without a question, its title, and where its synopsis and script are
            (data_prep.long_videoqa reads these rows; they are not for training)
  describe  the overview of every movie, and the described segments of its story
  qa        the questions of --annotations long_videoqa.json, text rows included
            (huggingface.co/datasets/YanweiLi/LLaMA-VID-Data)

examples:
  python -m data_prep.movienet --rows index --files data/movienet/files --key-frames data/movienet/240P \
      --made data/movienet/made --out data/movienet/movies.jsonl --skip-missing all
  python -m data_prep.movienet --rows qa --annotations long_videoqa.json --files data/movienet/files \
      --key-frames data/movienet/240P --made data/movienet/made --out data/movienet/manifest.jsonl --skip-missing all
"""

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.command_line import run_source
from data_prep.conversations import check_no_placeholder, read_conversation, show_medium
from data_prep.fields import text_field
from data_prep.media import MediaFolder
from data_prep.movies.movienet_folder import Movie, MovieNetFolder, synopsis_path
from data_prep.movies.ready import ReadyMovie, ready_movie
from data_prep.movies.story import story_segments
from data_prep.outcome import BadRecordError, DroppedError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_array import read_json_array
from data_prep.source import Origin
from longvid_train.console import argument
from longvid_train.data.manifest import Media, Sample, Turn
from longvid_train.errors import UserError

ORIGIN = Origin(
    source="movienet",
    license="MovieNet: research only; key frames and subtitles keep the rights of the movies",
    version="movie1K.v1",
)
QA_ORIGIN = Origin(
    source="long_videoqa_released",
    license="Long-VideoQA CC-BY-NC-4.0; MovieNet: research only; LongAlpaca CC-BY-NC-4.0",
    version="long_videoqa.json",
)

OVERVIEW_QUESTIONS = (
    "In a few sentences, what is this movie about?",
    "Tell me briefly what happens in this movie.",
    "Give a short overview of this movie.",
    "What is the story of this movie, in short?",
)
STORY_QUESTIONS = (
    "What happens in this part of the movie?",
    "Describe the events of this part of the movie.",
    "Tell me what takes place in this part of the movie.",
    "Which events does this part of the movie show?",
)
_WINDOW_MARGIN_S = 0.001


@dataclass(frozen=True)
class MovieSource:
    """One record a movie: an index row, or rows from its own descriptions.

    Attributes:
        folder: the files.
        origin: the data set.
        index: make index rows; False makes description rows.
        seed: decides how descriptions are asked for.
    """

    folder: MovieNetFolder
    origin: Origin
    index: bool
    seed: int

    def inputs(self) -> Sequence[InputFile]:
        """The text files of all movies; key frames and videos are not hashed."""
        return self.folder.text_files()

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {**_folder_settings(self.folder), "rows": "index" if self.index else "describe", "seed": self.seed}

    def read(self) -> Iterator[Item]:
        """Every movie that has key frames or a video."""
        folder = self.folder.videos.folder if self.folder.videos is not None else self.folder.key_frames
        for number, movie_id in enumerate(self.folder.movies(), start=1):
            yield Item(file=str(folder), line=number, value={"imdb_id": movie_id})

    def key(self, value: Any) -> str:
        """The movie's id."""
        return text_field(value, "imdb_id")

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """The rows of one movie."""
        movie = self.folder.movie(text_field(value, "imdb_id"))
        ready = ready_movie(movie)
        return [_index_row(movie, ready, row_id)] if self.index else _description_rows(movie, ready, row_id, self.seed)


@dataclass(frozen=True)
class ReleasedQaSource:
    """The published Long-VideoQA file: conversations about ``ID.pkl`` feature files, which become MovieNet's videos.

    Attributes:
        folder: the files.
        origin: the data set.
        annotations: ``long_videoqa.json``.
    """

    folder: MovieNetFolder
    origin: Origin
    annotations: InputFile

    def inputs(self) -> Sequence[InputFile]:
        """The annotation file."""
        return (self.annotations,)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {**_folder_settings(self.folder), "rows": "qa"}

    def read(self) -> Iterator[Item]:
        """All records."""
        return read_json_array(self.annotations)

    def key(self, value: Any) -> str:
        """The record's id; the file repeats ids, so repeats are numbered."""
        return text_field(value, "id")

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row."""
        conversation = read_conversation(value)
        if "video" not in value:
            check_no_placeholder(conversation.turns)
            return [Sample(id=row_id, conversation=conversation.turns, meta=conversation.notes)]
        movie = self.folder.movie(PurePosixPath(text_field(value, "video")).stem)
        ready = ready_movie(movie)
        meta = {**conversation.notes, **_movie_facts(movie, ready)}
        turns = show_medium(conversation.turns, "video")
        return [Sample(id=row_id, conversation=turns, media=(_whole(ready),), meta=meta)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--rows", choices=("index", "describe", "qa"), required=True, help="which rows to make, see above")
    add("--files", type=Path, required=True, help="folder of shot, subtitle, script, meta and annotation")
    media = parser.add_mutually_exclusive_group(required=True)
    media.add_argument("--key-frames", type=Path, help="folder of ID.tar, or of folders ID/")
    media.add_argument("--videos", type=Path, help="folder of the movies themselves: ID.mp4, ID.mkv, ...")
    add("--made", type=Path, required=True, help="folder for the videos and subtitles made; put it beside --out")
    add("--annotations", type=argument(InputFile.parse), help="long_videoqa.json, for --rows qa")
    add("--subtitle-encoding", default="utf-8-sig", help="encoding of the .srt files, e.g. cp1252 (UTF-8)")
    add("--without-subtitles", action="store_true", help="show movies that have no subtitles too")
    add("--seed", type=int, default=0, help="decides how descriptions are asked for (0)")


def make_source(arguments: argparse.Namespace) -> MovieSource | ReleasedQaSource:
    """The source that the options describe."""
    folder = open_folder(arguments)
    if (arguments.rows == "qa") != (arguments.annotations is not None):
        raise UserError("--annotations and --rows qa go together; give both or neither")
    if arguments.annotations is not None:
        return ReleasedQaSource(folder, QA_ORIGIN, arguments.annotations)
    return MovieSource(folder, ORIGIN, arguments.rows == "index", arguments.seed)


def open_folder(arguments: argparse.Namespace) -> MovieNetFolder:
    """The MovieNet folder that the options describe."""
    if arguments.key_frames is not None and not arguments.key_frames.is_dir():
        raise UserError(f"{arguments.key_frames}: no such folder; name the folder of ID.tar or ID/")
    arguments.made.mkdir(parents=True, exist_ok=True)
    return MovieNetFolder(
        files=MediaFolder.open(arguments.files, arguments.out, "text"),
        key_frames=arguments.key_frames,
        videos=arguments.videos and MediaFolder.open(arguments.videos, arguments.out, "video"),
        made=MediaFolder.open(arguments.made, arguments.out, "video"),
        subtitle_encoding=arguments.subtitle_encoding,
        require_subtitles=not arguments.without_subtitles,
    )


def _folder_settings(folder: MovieNetFolder) -> dict[str, Any]:
    return {
        "videos": folder.videos and folder.videos.prefix,
        "made": folder.made.prefix,
        "files": folder.files.prefix,
        "subtitle_encoding": folder.subtitle_encoding,
        "require_subtitles": folder.require_subtitles,
    }


def _index_row(movie: Movie, ready: ReadyMovie, row_id: str) -> Sample:
    texts = {"synopsis_file": synopsis_path(movie), "script_file": movie.script_path}
    meta = {**_movie_facts(movie, ready), **{name: path for name, path in texts.items() if path is not None}}
    return Sample(id=row_id, conversation=(Turn("user", "<video>"),), media=(_whole(ready),), meta=meta)


def _description_rows(movie: Movie, ready: ReadyMovie, row_id: str, seed: int) -> list[Sample]:
    rows = []
    overview = movie.meta.get("overview")
    if isinstance(overview, str) and overview.strip():
        rows.append(_described(f"{row_id}/overview", OVERVIEW_QUESTIONS, overview, _whole(ready), movie, ready, seed))
    for number, segment in enumerate(story_segments(movie.annotation)):
        if not segment.description:
            continue
        start_s, end_s = segment.start_s - ready.origin_s, min(segment.end_s - ready.origin_s, ready.duration_s)
        if end_s - max(start_s, 0.0) < _WINDOW_MARGIN_S:
            raise BadRecordError(
                "a story segment lies outside the movie",
                f"{movie.id}: {segment.start_s:.1f} to {segment.end_s:.1f} s of {ready.duration_s:.1f} s",
            )
        part = Media(
            type="video",
            path=ready.video,
            subtitles=ready.subtitles,
            start_s=round(max(start_s, 0.0), 3),
            end_s=round(end_s, 3),
        )
        rows.append(
            _described(f"{row_id}/story-{number}", STORY_QUESTIONS, segment.description, part, movie, ready, seed)
        )
    if not rows:
        raise DroppedError("the movie has no overview and no described segment")
    return rows


def _described(
    row_id: str, questions: Sequence[str], answer: str, media: Media, movie: Movie, ready: ReadyMovie, seed: int
) -> Sample:
    asked = random.Random(f"{seed} {row_id}").choice(questions)
    turns = (Turn("user", f"<video>\n{asked}"), Turn("assistant", " ".join(answer.split())))
    check_no_placeholder(turns[1:])
    return Sample(
        id=row_id, conversation=turns, media=(media,), meta={"kind": "description", **_movie_facts(movie, ready)}
    )


def _whole(ready: ReadyMovie) -> Media:
    return Media(type="video", path=ready.video, subtitles=ready.subtitles)


def _movie_facts(movie: Movie, ready: ReadyMovie) -> dict[str, Any]:
    genres = movie.meta.get("genres")
    facts = {"imdb_id": movie.id, "title": movie.title, "duration_s": round(ready.duration_s, 3), **ready.facts}
    return {**facts, "genres": genres} if isinstance(genres, list) else facts


if __name__ == "__main__":
    sys.exit(run_source("movienet"))
