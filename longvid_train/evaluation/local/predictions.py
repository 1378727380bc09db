"""Answers on disk, one JSON object a line, with everything that scoring them again needs.

Lines are appended whole under a lock, so several processes may write one file. A line that a killed process left
unfinished is cut off when the file is opened again.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longvid_train.errors import UserError
from longvid_train.evaluation.reading import field, read_json_lines

_REMEDY = "run longvid evaluate first"
_PLAIN: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("id", "manifest", "kind", "question", "answer", "video"), str),
    **dict.fromkeys(("frames", "visual_tokens", "prompt_tokens", "new_tokens", "batch"), int),
    **dict.fromkeys(("duration_s", "scale", "generate_s"), (int, float)),
    "truth": (str, type(None)),
    "meta": dict,
}
"""Fields of a line and the JSON types they have."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answered question.

    Attributes:
        id: of the question.
        manifest: it came from.
        place: number of its manifest, row and turn.
        kind: of the question.
        question: the words asked.
        options: of a multiple-choice question.
        truth: the right answer; ``None`` where there is none.
        answer: the model's words.
        meta: of the row.
        video: tells its media apart.
        duration_s: length of what was shown: of the rows' part of each video, summed; 0 without video.
        frames: shown.
        visual_tokens: in the prompt.
        prompt_tokens: all of the prompt.
        new_tokens: generated.
        scale: of the window.
        batch: questions that were answered together.
        generate_s: seconds that took, for all of them.
    """

    id: str
    manifest: str
    place: tuple[int, int, int]
    kind: str
    question: str
    options: tuple[str, ...]
    truth: str | None
    answer: str
    meta: Mapping[str, Any]
    video: str
    duration_s: float
    frames: int
    visual_tokens: int
    prompt_tokens: int
    new_tokens: int
    scale: float
    batch: int
    generate_s: float


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A question that could not be asked, and why."""

    id: str
    manifest: str
    reason: str


class LineLog:
    """A file of JSON lines that processes append to.

    Args:
        path: the file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: Iterable[Prediction | LeftOut]) -> None:
        """Append records, all or none of them."""
        data = b"".join(json.dumps(asdict(one), ensure_ascii=False).encode() + b"\n" for one in records)
        with self.path.open("ab+", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            before = stream.seek(0, os.SEEK_END)
            try:
                written = stream.write(data)
                if written != len(data):
                    raise OSError(f"{self.path}: only {written} of {len(data)} bytes could be written")
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(before)
                raise

    def lines(self) -> int:
        """Lines in the file now."""
        return self.path.read_bytes().count(b"\n") if self.path.is_file() else 0

    def mend(self) -> int:
        """Cut off an unfinished last line and return its bytes; 0 where all lines are whole.

        A process that is writing a line is waited for.
        """
        if not self.path.is_file():
            return 0
        with self.path.open("rb+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            data = stream.read()
            whole = data.rfind(b"\n") + 1
            stream.truncate(whole)
        return len(data) - whole


def read_predictions(path: Path) -> list[Prediction]:
    """Read a file of predictions, in the order of their manifests; a process that is writing a line is waited for.

    Raises:
        UserError: the file is missing, a line is broken, or it answers a question again; the message names it.
    """
    with _unchanging(path):
        rows = list(read_json_lines(path, _REMEDY))
    found: dict[str, tuple[str, Prediction]] = {}
    for where, row in rows:
        one = _prediction(row, where)
        if one.id in found:
            raise UserError(
                f"{where}: question '{one.id}' is answered at {found[one.id][0]} already, and every question counts "
                "once; delete one of the two lines"
            )
        found[one.id] = where, one
    return sorted((one for _, one in found.values()), key=lambda one: one.place)


def read_left_out(path: Path) -> list[LeftOut]:
    """Read the questions that were left out; none where there is no file.

    Raises:
        UserError: a line is broken.
    """
    if not path.is_file():
        return []
    names = ("id", "manifest", "reason")
    with _unchanging(path):
        rows = list(read_json_lines(path, _REMEDY))
    return [LeftOut(**{name: field(row, name, str, where) for name in names}) for where, row in rows]


@contextmanager
def _unchanging(path: Path) -> Iterator[None]:
    """Keep writers out, where there is a file."""
    if not path.is_file():
        yield
        return
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


def _prediction(row: dict[str, Any], where: str) -> Prediction:
    values: dict[str, Any] = {name: field(row, name, kinds, where) for name, kinds in _PLAIN.items()}
    manifest, line, turn = field(row, "place", list, where)
    return Prediction(
        **values,
        place=(manifest, line, turn),
        options=tuple(field(row, "options", list, where)),
    )
