"""Questions to answers of one loaded model: pools of questions, batches of alike ones, files that cannot be shown."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from longvid_train.data.manifest import Turn
from longvid_train.errors import UserError
from longvid_train.evaluation.local.batches import alike, pools
from longvid_train.evaluation.local.encoded import EncodedMedia
from longvid_train.evaluation.local.predictions import LeftOut, LineLog, Prediction
from longvid_train.evaluation.local.questions import MULTIPLE_CHOICE, Question
from longvid_train.evaluation.local.settings import EvaluationSettings
from longvid_train.evaluation.local.showing import Showing, turns_of
from longvid_train.generate.answer import Answer
from longvid_train.generate.chat import Conversation, VideoChat
from longvid_train.generate.media import Medium
from longvid_train.generate.options import GenerationOptions

POOL_BATCHES = 8
"""Batches' worth of questions that are opened together, so that there are alike ones to batch."""

OnProgress = Callable[[int, int], None]
"""Called with the questions done and all of them."""


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A question whose media are open."""

    question: Question
    text: str
    turns: tuple[Turn, ...]
    media: tuple[Medium, ...]
    alike: tuple[int, ...]


class Answering:
    """Answers questions and appends what comes of them to two files.

    Args:
        chat: the loaded model.
        showing: how media are opened.
        settings: of the evaluation.
        predictions: gets the answers.
        left_out: gets what could not be asked.
    """

    def __init__(
        self,
        chat: VideoChat,
        showing: Showing,
        settings: EvaluationSettings,
        predictions: LineLog,
        left_out: LineLog,
    ) -> None:
        self._chat = chat
        self._showing = showing
        self._settings = settings
        self._options = generation_options(settings)
        self._predictions = predictions
        self._left_out = left_out
        self._encoded = EncodedMedia(settings.cached_videos)

    def run(self, questions: Sequence[Question], on_progress: OnProgress) -> None:
        """Answer all questions.

        Raises:
            UserError: more rows than allowed cannot be asked.
        """
        done = 0
        size = self._settings.batch_size
        for pool in pools(questions, size * POOL_BATCHES if size > 1 else 1):
            opened = [one for question in pool if (one := self._open(question)) is not None]
            for batch in alike([one.alike for one in opened], size):
                self._answer([opened[place] for place in batch])
            done += len(pool)
            on_progress(done, len(questions))

    def _open(self, question: Question) -> _Opened | None:
        text = asked_words(question, self._settings.open_suffix)
        try:
            media = self._showing.open(question, text)
            turns = turns_of(question, text, [medium.type for medium in media])
            layouts = [medium.layout for medium in media]
            self._chat.prompting.check_window(turns, layouts, self._options.max_new_tokens)
        except UserError as error:
            self._leave_out(question, error)
            return None
        counts = self._chat.prompting.token_counts(turns, layouts, self._options.max_new_tokens)
        shown = tuple(layout.frame_count for layout in layouts)
        return _Opened(question=question, text=text, turns=turns, media=media, alike=(counts.total, *shown))

    def _answer(self, batch: Sequence[_Opened]) -> None:
        ready = list(self._conversations(batch))
        if not ready:
            return
        answers = self._chat.ask_batch([talk for _, talk in ready], [one.text for one, _ in ready], self._options)
        self._predictions.append(
            _prediction(one, answer, len(ready)) for (one, _), answer in zip(ready, answers, strict=True)
        )

    def _conversations(self, batch: Sequence[_Opened]) -> Iterator[tuple[_Opened, Conversation]]:
        for one in batch:
            try:
                talk = self._about(one)
            except UserError as error:
                self._leave_out(one.question, error)
                continue
            talk.turns = one.turns[:-1]
            yield one, talk

    def _about(self, one: _Opened) -> Conversation:
        """The media of a question without turns, encoded."""
        key = (one.question.folder, one.question.media, one.alike[1:])
        return self._encoded.fork(key, lambda: self._chat.open(one.media, read=self._showing.read))

    def _leave_out(self, question: Question, error: UserError) -> None:
        leave_out(question, str(error), self._left_out, self._settings.max_left_out)


def leave_out(question: Question, reason: str, log: LineLog, most: int) -> None:
    """Note a question that cannot be asked.

    Raises:
        UserError: that makes more than ``most``.
    """
    log.append([LeftOut(id=question.id, manifest=question.manifest, reason=reason)])
    if (count := log.lines()) > most:
        raise UserError(
            f"{question.manifest}: row '{question.id}' cannot be asked: {reason}; that makes {count} left out and "
            f"max_left_out is {most}: mend the row, or raise it (--max-left-out) to leave such rows out by name"
        )


def asked_words(question: Question, open_suffix: str) -> str:
    """The words to ask: the question's, and behind an open question the suffix on a line of its own."""
    if not open_suffix or question.kind == MULTIPLE_CHOICE:
        return question.text
    return f"{question.text}\n{open_suffix}"


def generation_options(settings: EvaluationSettings) -> GenerationOptions:
    """How answers are drawn.

    Raises:
        UserError: a value is out of its range.
    """
    return GenerationOptions(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        num_beams=settings.num_beams,
        seed=settings.seed,
    )


def _prediction(one: _Opened, answer: Answer, batch: int) -> Prediction:
    question = one.question
    return Prediction(
        id=question.id,
        manifest=question.manifest,
        place=question.place,
        kind=question.kind,
        question=one.text,
        options=question.options,
        truth=question.truth,
        answer=answer.answer,
        meta=question.meta,
        video=question.video,
        duration_s=_shown_s(question, one.media),
        frames=answer.frames,
        visual_tokens=answer.visual_tokens,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        scale=answer.window.scale,
        batch=batch,
        generate_s=answer.generate_s,
    )


def _shown_s(question: Question, media: Sequence[Medium]) -> float:
    """Seconds of video that the question is about."""
    total_s = 0.0
    for row, medium in zip(question.media, media, strict=True):
        if medium.type == "video":
            total_s += (medium.duration_s if row.end_s is None else row.end_s) - row.start_s
    return total_s
