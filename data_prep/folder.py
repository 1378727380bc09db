"""A folder of your own videos, nested as you like, with subtitles beside them (NAME.srt, NAME.vtt, NAME.LANGUAGE.srt).

Three kinds of rows: --questions CSV (columns video, question, answer; the video's path below the folder; a blank answer
gives a row that can only be asked); --captions (the answer is the text of NAME.txt beside NAME.mp4); or --question
"TEXT" asked about every video, without an answer. Subtitles are NAME.CODE.srt where --language CODE is given, then
NAME.srt; without --language NAME.srt, then the one NAME.LANGUAGE.srt there is (several are a broken record). Videos
without subtitles can get some by --speech-to-text MODEL (faster-whisper; pip install 'longvid-train[speech]'), written
below --transcripts.

examples:
  python -m data_prep.folder --videos data/lectures --questions data/lectures.csv --out data/lectures.jsonl
  python -m data_prep.folder --videos data/home --question "What happens in this video?" --out data/home.jsonl
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data_prep.answers import open_question
from data_prep.captions import caption_instruction
from data_prep.command_line import natural, run_source
from data_prep.fields import text_field
from data_prep.media import VIDEO_SUFFIXES, MediaFolder
from data_prep.outcome import BadRecordError, MissingMediaError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.table import read_table
from data_prep.source import Origin
from data_prep.speech import require_speech_to_text, write_transcript
from longvid_train.console import argument
from longvid_train.data.manifest import Sample
from longvid_train.errors import UserError
from longvid_train.video import read_subtitles

COLUMNS = ("video", "question", "answer")
SUBTITLE_SUFFIXES = (".srt", ".vtt")
LANGUAGE_CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class SpeechSettings:
    """How missing subtitles are made.

    Attributes:
        model: name or folder of the model.
        transcripts: where the ``.srt`` files go, one below it for each video.
    """

    model: str
    transcripts: MediaFolder


@dataclass(frozen=True)
class VideoFolder:
    """Rows about the videos of a folder.

    Attributes:
        origin: name, licence and version that the user gives.
        videos: the folder.
        listing_sha256: of the names and sizes of its videos and subtitles.
        rows: what the rows are made of.
        questions: the table, for rows ``"questions"``.
        question: asked about every video, for rows ``"question"``.
        seed: of the choice of instructions, for rows ``"captions"``.
        language: of subtitles named NAME.LANGUAGE.srt, and of the speech.
        translations: a video's path without suffix -> its subtitles named NAME.LANGUAGE.srt, sorted.
        speech: how missing subtitles are made; None: they stay missing.
    """

    origin: Origin
    videos: MediaFolder
    listing_sha256: str
    rows: Literal["questions", "question", "captions"]
    questions: InputFile | None = None
    question: str = ""
    seed: int = 0
    language: str | None = None
    translations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    speech: SpeechSettings | None = None

    def inputs(self) -> Sequence[InputFile]:
        """The table of questions."""
        return () if self.questions is None else (self.questions,)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {
            "videos": self.videos.prefix,
            "listing_sha256": self.listing_sha256,
            "rows": self.rows,
            "question": self.question,
            "seed": self.seed,
            "language": self.language,
            "speech": self.speech and [self.speech.model, self.speech.transcripts.prefix],
        }

    def read(self) -> Iterator[Item]:
        """The rows of the table, or the videos of the folder by name."""
        if self.questions is not None:
            yield from read_table(self.questions, COLUMNS)
            return
        for name in walk(self.videos.folder, VIDEO_SUFFIXES):
            yield Item(file=str(self.videos.folder / name), line=0, value={"video": name})

    def key(self, value: Any) -> str:
        """The video's path below the folder."""
        return self.videos.checked(text_field(value, "video"))

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row."""
        name = self.key(value)
        path = self.videos.find(name)
        question, answer = self._words(name, value)
        meta: dict[str, Any] = {"kind": "caption" if self.rows == "captions" else "open"}
        if answer is not None:
            meta["answer"] = answer
        return [
            open_question(
                row_id=row_id, video=path, question=question, answer=answer, meta=meta, subtitles=self._subtitles(name)
            )
        ]

    def _words(self, name: str, value: Mapping[str, Any]) -> tuple[str, str | None]:
        if self.rows == "question":
            return self.question, None
        if self.rows == "questions":
            return text_field(value, "question"), value["answer"].strip() or None
        return caption_instruction(name, self.seed), self._caption(name)

    def _caption(self, name: str) -> str:
        path = (self.videos.folder / name).with_suffix(".txt")
        try:
            caption = path.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            raise MissingMediaError("caption file is missing", str(path)) from None
        except UnicodeDecodeError as error:
            raise BadRecordError("the caption file is not UTF-8", f"{path}: byte {error.start}") from error
        if not caption:
            raise BadRecordError("the caption file is empty", str(path))
        return caption

    def _subtitles(self, name: str) -> str | None:
        stem = PurePosixPath(name).with_suffix("").as_posix()
        stems = [stem] if self.language is None else [f"{stem}.{self.language}", stem]
        candidates = [f"{each}{suffix}" for each in stems for suffix in SUBTITLE_SUFFIXES]
        if self.language is None:
            candidates.extend(self._only_language(stem, candidates))
        for candidate in candidates:
            if (self.videos.folder / candidate).is_file():
                _check_subtitles(self.videos.folder / candidate)
                return self.videos.row_path(candidate)
        return None if self.speech is None else self._transcript(name, self.speech)

    def _only_language(self, stem: str, plain: Sequence[str]) -> Sequence[str]:
        named = self.translations.get(stem, ())
        languages = {PurePosixPath(name).stem.rpartition(".")[2] for name in named}
        if len(languages) > 1 and not any((self.videos.folder / name).is_file() for name in plain):
            raise BadRecordError("subtitles in several languages", f"{', '.join(named)}; choose one with --language")
        return named

    def _transcript(self, name: str, speech: SpeechSettings) -> str:
        relative = f"{name}.srt"
        path = speech.transcripts.folder / relative
        if not path.is_file():
            try:
                write_transcript(self.videos.folder / name, path, speech.model, self.language)
            except UserError as error:
                raise BadRecordError("the speech cannot be transcribed", str(error)) from error
        return speech.transcripts.row_path(relative)


def walk(folder: Path, suffixes: Sequence[str]) -> Iterator[str]:
    """POSIX paths below ``folder`` of the files with one of the suffixes, sorted; hidden files and folders left out."""
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            path = Path(parent) / file
            if path.suffix.lower() in suffixes and not file.startswith("."):
                names.append(path.relative_to(folder).as_posix())
    yield from sorted(names)


def find_translations(folder: Path) -> Mapping[str, Sequence[str]]:
    """Subtitles below ``folder`` named NAME.LANGUAGE.srt or .vtt, sorted, by the path without language and suffix."""
    found: dict[str, list[str]] = {}
    for name in walk(folder, SUBTITLE_SUFFIXES):
        stem, dot, language = PurePosixPath(name).with_suffix("").as_posix().rpartition(".")
        if dot and LANGUAGE_CODE.fullmatch(language):
            found.setdefault(stem, []).append(name)
    return found


def listing_sha256(folder: Path) -> str:
    """Digest of the names and sizes of the videos, subtitles and captions below ``folder``."""
    digest = hashlib.sha256()
    for name in walk(folder, (*VIDEO_SUFFIXES, *SUBTITLE_SUFFIXES, ".txt")):
        digest.update(f"{name}\0{(folder / name).stat().st_size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _check_subtitles(path: Path) -> None:
    try:
        read_subtitles(path)
    except UserError as error:
        raise BadRecordError("the subtitles are broken", str(error)) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--videos", type=Path, required=True, help="the folder")
    add("--questions", type=argument(InputFile.parse), metavar="CSV", help="columns video, question, answer")
    add("--captions", action="store_true", help="answers are the texts in NAME.txt")
    add("--question", metavar="TEXT", help="ask this about every video, without an answer")
    add("--name", default="folder", help="name of the data set in the rows (folder)")
    add("--license", default="unknown", help="licence of the videos (unknown)")
    add("--data-version", default="1", help="version of the data set (1)")
    add("--seed", type=argument(natural), default=0, help="of the choice of instructions for --captions (0)")
    add("--language", metavar="CODE", help="take NAME.CODE.srt first; language of the speech")
    add("--speech-to-text", metavar="MODEL", help="make missing subtitles, e.g. with model small")
    add("--transcripts", type=Path, metavar="FOLDER", help="where --speech-to-text writes (OUT's folder/transcripts)")


def make_source(arguments: argparse.Namespace) -> VideoFolder:
    """The source that the options describe.

    Raises:
        UserError: not exactly one of the three kinds of rows is asked for, or faster-whisper is not installed.
    """
    kinds = {"questions": arguments.questions, "captions": arguments.captions, "question": arguments.question}
    asked = [kind for kind, value in kinds.items() if value]
    if len(asked) != 1:
        raise UserError("give exactly one of --questions CSV, --captions and --question TEXT")
    videos = MediaFolder.open(arguments.videos, arguments.out, "video")
    folder = VideoFolder(
        origin=Origin(arguments.name, arguments.license, arguments.data_version),
        videos=videos,
        listing_sha256=listing_sha256(videos.folder),
        rows=asked[0],  # type: ignore[arg-type]
        questions=arguments.questions,
        question=arguments.question or "",
        seed=arguments.seed,
        language=arguments.language,
        translations=find_translations(videos.folder),
    )
    if arguments.speech_to_text is None:
        return folder
    require_speech_to_text()
    transcripts = arguments.transcripts or arguments.out.parent / "transcripts"
    transcripts.mkdir(parents=True, exist_ok=True)
    return replace(
        folder,
        speech=SpeechSettings(arguments.speech_to_text, MediaFolder.open(transcripts, arguments.out, "subtitles")),
    )


if __name__ == "__main__":
    sys.exit(run_source("folder"))
