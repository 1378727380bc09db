"""Manifest rows to questions: a row of several turns becomes one question a turn, behind the right answers so far."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.data.manifest import Manifest, ManifestRules, Media, Sample, read_manifest, sample_to_json
from longvid_train.data.row_checks import PLACEHOLDER, RowError
from longvid_train.errors import UserError
from longvid_train.evaluation.local.choice import LEAST_OPTIONS, MOST_OPTIONS, right_option

OTHER = "other"
MULTIPLE_CHOICE = "multiple_choice"
_BY_TURN = ("kind", "answer", "evidence_s")
"""Fields of ``meta`` that hold a list with one entry a turn in rows of several turns."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about the media of a row.

    Attributes:
        id: the row's id; with ``/2``, ``/3`` behind it for later turns.
        manifest: path of its manifest as named in the settings.
        place: number of the manifest, row and turn, from 0.
        kind: ``meta.kind``, or ``"other"``.
        text: the user's words, with the placeholders of a first turn.
        history: earlier questions and their right answers.
        truth: the right answer; ``None`` where the row has none.
        options: of a multiple-choice question; else empty.
        media: what is shown.
        folder: where relative media paths start.
        meta: the row's, entries by turn resolved.
    """

    id: str
    manifest: str
    place: tuple[int, int, int]
    kind: str
    text: str
    history: tuple[tuple[str, str], ...]
    truth: str | None
    options: tuple[str, ...]
    media: tuple[Media, ...]
    folder: Path
    meta: Mapping[str, Any]

    @property
    def video(self) -> str:
        """What tells the question's media apart: answers about the same are not independent."""
        return "|".join(str(self.folder / medium.path) for medium in self.media) or self.id

    def missing_file(self, *, subtitles: bool) -> Path | None:
        """The first file of the question's media, and with ``subtitles`` of its subtitles, that does not exist."""
        shown = [(medium.path, medium.subtitles if subtitles else None) for medium in self.media]
        names = (name for both in shown for name in both if name is not None)
        return next((path for path in (self.folder / name for name in names) if not path.is_file()), None)


def read_questions(manifests: Sequence[str], limit: int | None = None) -> tuple[list[Manifest], list[Question]]:
    """Read manifests; the media files need not exist.

    Args:
        manifests: paths.
        limit: take only the first rows of each; ``None`` takes all.

    Raises:
        UserError: a manifest is missing or broken, two manifests share an id, or a row cannot be asked.
    """
    rules = ManifestRules(require_answer=False, check_files=False, allow_outside=True)
    read = [read_manifest(path, rules) for path in manifests]
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for number, (name, manifest) in enumerate(zip(manifests, read, strict=True)):
        rows = len(manifest) if limit is None else min(limit, len(manifest))
        for row in range(rows):
            sample = manifest[row]
            _check_writable(sample, f"{name}:{manifest.line_number(row)}")
            for question in _questions(sample, manifest, name, (number, row)):
                if question.id in seen:
                    raise UserError(
                        f"{name}:{manifest.line_number(row)}: id '{question.id}' also stands in {seen[question.id]}; "
                        "answers need one id a question, so evaluate the manifests apart"
                    )
                seen[question.id] = name
                questions.append(question)
    return read, questions


def _questions(sample: Sample, manifest: Manifest, name: str, place: tuple[int, int]) -> Iterator[Question]:
    history: list[tuple[str, str]] = []
    where = f"{name}:{manifest.line_number(place[1])}: row '{sample.id}'"
    turns = sample.conversation
    asked = turns[0::2]
    answers: list[str | None] = [turn.text for turn in turns[1::2]]
    answers += [None] * (len(asked) - len(answers))
    for number, (turn, answer) in enumerate(zip(asked, answers, strict=True)):
        if number and PLACEHOLDER.search(turn.text):
            raise UserError(
                f"{where} shows media in turn {number + 1}; only rows that show all media with the first question can "
                "be evaluated"
            )
        meta = _meta_of_turn(sample.meta, number, len(asked))
        if meta.get("kind") == MULTIPLE_CHOICE:
            _check_choice(_options(meta), answer, where)
        yield Question(
            id=f"{sample.id}/{number + 1}" if number else sample.id,
            manifest=name,
            place=(*place, number),
            kind=str(meta.get("kind", OTHER)),
            text=turn.text,
            history=tuple(history),
            truth=answer,
            options=_options(meta),
            media=sample.media,
            folder=manifest.path.parent.absolute(),
            meta=meta,
        )
        if answer is not None:
            history.append((turn.text, answer))


def _check_writable(sample: Sample, where: str) -> None:
    """An answer is written with its row: half a Unicode character would break that behind the model's work."""
    try:
        sample_to_json(sample)
    except RowError as error:
        raise UserError(f"{where}: {error}; write whole characters") from None


def _check_choice(options: Sequence[str], truth: str | None, where: str) -> None:
    if not LEAST_OPTIONS <= len(options) <= MOST_OPTIONS:
        raise UserError(
            f"{where} is multiple choice, but meta.options is no list of {LEAST_OPTIONS} to {MOST_OPTIONS} texts; "
            "write the options there"
        )
    if truth is None:
        return
    try:
        right_option(truth, options)
    except UserError as error:
        raise UserError(f"{where} is multiple choice, but {error}") from None


def _meta_of_turn(meta: Mapping[str, Any], number: int, turns: int) -> dict[str, Any]:
    return {
        key: value[number]
        if key in _BY_TURN and turns > 1 and isinstance(value, list) and len(value) == turns
        else value
        for key, value in meta.items()
    }


def _options(meta: Mapping[str, Any]) -> tuple[str, ...]:
    options = meta.get("options")
    listed = isinstance(options, list) and all(isinstance(option, str) for option in options)
    return tuple(options) if listed and options is not None else ()
