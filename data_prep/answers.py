"""Rows of question answering: open questions and multiple choice."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.outcome import BadRecordError, DroppedError
from longvid_train.data.manifest import Media, Sample, Turn
from longvid_train.data.row_checks import PLACEHOLDER

CHOICE_INSTRUCTION = "Answer with the letter of the right option only."


def open_question(
    *, row_id: str, video: str, question: str, answer: str | None, meta: Mapping[str, Any], subtitles: str | None = None
) -> Sample:
    """A row with one question about one video; without an answer the row can be asked but not scored.

    Raises:
        DroppedError: the words hold a literal ``<image>`` or ``<video>``.
    """
    found = PLACEHOLDER.search(f"{question}\n{answer or ''}")
    if found:
        raise DroppedError("the text holds a literal <image> or <video>", f"'{found.group()}'")
    turns = [Turn("user", f"<video>\n{question}")]
    if answer is not None:
        turns.append(Turn("assistant", answer))
    media = Media(type="video", path=video, subtitles=subtitles)
    return Sample(id=row_id, media=(media,), conversation=tuple(turns), meta=dict(meta))


def multiple_choice(
    *,
    row_id: str,
    video: str,
    question: str,
    options: Sequence[str],
    correct: int | None,
    meta: Mapping[str, Any],
    subtitles: str | None = None,
) -> Sample:
    """A row that asks for the letter of one of ``options``; ``correct`` counts from 0, None leaves the answer out.

    Raises:
        BadRecordError: ``correct`` is not one of the options.
        DroppedError: the words hold a literal ``<image>`` or ``<video>``.
    """
    if correct is not None and not 0 <= correct < len(options):
        raise BadRecordError("the right option is not among the options", f"{correct} of {len(options)}")
    letters = string.ascii_uppercase
    listed = "\n".join(f"{letters[number]}. {option}" for number, option in enumerate(options))
    answer = None if correct is None else letters[correct]
    known = {} if answer is None else {"answer": answer}
    return open_question(
        row_id=row_id,
        video=video,
        question=f"{question}\n{listed}\n{CHOICE_INSTRUCTION}",
        answer=answer,
        subtitles=subtitles,
        meta={**meta, "kind": "multiple_choice", "options": list(options), **known},
    )


def as_question(text: str) -> str:
    """The text with a question mark, which some sources leave out."""
    stripped = text.strip()
    return stripped if stripped.endswith(("?", ".", "!")) else f"{stripped}?"
