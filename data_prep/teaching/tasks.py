"""The four things a teacher is asked about a movie, and how many replies each takes.

From LLaMA-VID, section 3.3 and appendix B: two summaries and 5 plot + 5 character pairs from the synopsis; 5 reasoning
and 5 detail pairs from the script. Texts beyond the teacher's window are condensed part by part first; details are
asked for part by part, since condensing would lose them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data_prep.teaching.parts import share_out, split_text
from data_prep.teaching.prompts import question_about
from data_prep.teaching.replies import Pair, notes_parser, pairs_parser, parse_summaries
from longvid_train.endpoint import Answer, ChatClient, Failure

PAIRS = 5
_CHARACTERS_PER_WORD = 7
"""Of English with the space behind each word, rounded up, so that the words asked for fit the characters allowed."""

TextKind = Literal["synopsis", "script"]


@dataclass(frozen=True)
class Taught:
    """Question and answer pairs by kind; a summary's question is empty: the row's maker words it.

    Attributes:
        pairs: (kind, pair) in a fixed order.
        model: the model that answered, by its own name.
    """

    pairs: tuple[tuple[str, Pair], ...]
    model: str


@dataclass(frozen=True)
class Task:
    """One of the four.

    Attributes:
        text: which text it needs.
        prompts: prompt files it uses.
        ask: asks the client about a text, of which at most so many characters may stand in one request.
    """

    text: TextKind
    prompts: tuple[str, ...]
    ask: Callable[[ChatClient, str, int], Taught | Failure]


def _summary(client: ChatClient, text: str, most_characters: int) -> Taught | Failure:
    fitted = _fitted(client, text, most_characters)
    if isinstance(fitted, Failure):
        return fitted
    answer = client.ask(question_about("summary", fitted), parse_summaries)
    if isinstance(answer, Failure):
        return answer
    summaries = {"brief": answer.value.brief, "detailed": answer.value.detailed}
    return Taught(tuple((kind, Pair("", summary)) for kind, summary in summaries.items()), answer.model)


def _plot_character(client: ChatClient, text: str, most_characters: int) -> Taught | Failure:
    fitted = _fitted(client, text, most_characters)
    if isinstance(fitted, Failure):
        return fitted
    question = question_about("plot_character", fitted, count=PAIRS)
    answer = client.ask(question, pairs_parser(PAIRS, "plot", "character"))
    if isinstance(answer, Failure):
        return answer
    plot, character = answer.value
    return Taught((*(("plot", pair) for pair in plot), *(("character", pair) for pair in character)), answer.model)


def _reasoning(client: ChatClient, text: str, most_characters: int) -> Taught | Failure:
    fitted = _fitted(client, text, most_characters)
    if isinstance(fitted, Failure):
        return fitted
    answer = client.ask(question_about("reasoning", fitted, count=PAIRS), pairs_parser(PAIRS, "pairs"))
    return answer if isinstance(answer, Failure) else _of_kind("reasoning", [answer])


def _detail(client: ChatClient, text: str, most_characters: int) -> Taught | Failure:
    parts = split_text(text, most_characters)
    answers = []
    for part, count in zip(parts, share_out(PAIRS, [len(part) for part in parts]), strict=True):
        if not count:
            continue
        answer = client.ask(question_about("detail", part, count=count), pairs_parser(count, "pairs"))
        if isinstance(answer, Failure):
            return answer
        answers.append(answer)
    return _of_kind("detail", answers)


def _of_kind(kind: str, answers: list[Answer[tuple[tuple[Pair, ...], ...]]]) -> Taught:
    pairs = tuple((kind, pair) for answer in answers for (pairs,) in [answer.value] for pair in pairs)
    return Taught(pairs, answers[0].model)


def _fitted(client: ChatClient, text: str, most_characters: int) -> str | Failure:
    """The text, or where it is too long for one request, the teacher's notes on its parts."""
    parts = split_text(text, most_characters)
    if len(parts) == 1:
        return text
    allowed = max(1, most_characters // len(parts) - len("\n\n"))
    notes = []
    for number, part in enumerate(parts, start=1):
        words = max(1, allowed // _CHARACTERS_PER_WORD)
        question = question_about("condense", part, part=number, parts=len(parts), words=words)
        answer = client.ask(question, notes_parser(allowed))
        if isinstance(answer, Failure):
            return answer
        notes.append(answer.value)
    return "\n\n".join(notes)


TASKS = {
    "summary": Task("synopsis", ("summary", "condense"), _summary),
    "plot": Task("synopsis", ("plot_character", "condense"), _plot_character),
    "reasoning": Task("script", ("reasoning", "condense"), _reasoning),
    "detail": Task("script", ("detail",), _detail),
}
"""By the name that options and row ids use."""
