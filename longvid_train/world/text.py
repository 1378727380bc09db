"""World text: an episode told in words, for pre-training the nano language model and for text-only training rows.

A reading starts with a transcript, one entry a second, and goes on with a caption of it and questions about it. An
entry is either plain words or *merged* words: positions that each stand for several words at once (the sum of their
embeddings). Large language models read such superposed soft tokens out of the box; a model of a million parameters
has to meet them in pre-training, since visual tokens are exactly that.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from longvid_train.types import Subtitle
from longvid_train.world.episode import Episode
from longvid_train.world.questions import Question, ask, caption, speech

NOTHING = "nothing"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one second of an episode shows: one bag of words a position, the same in plain words, and what is spoken."""

    bags: tuple[tuple[str, ...], ...]
    words: str
    spoken: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A transcript, its caption, what was said with which object, and questions about it."""

    entries: tuple[Entry, ...]
    caption: str
    speech: str
    questions: tuple[Question, ...]


def read_episode(
    episode: Episode, rng: random.Random, *, kinds: Sequence[str], questions: int, merged: bool
) -> Reading:
    """Turn an episode into a reading with up to ``questions`` distinct questions of the given kinds.

    ``merged`` gives two bags a second, as LLaMA-VID gives two tokens: one of a single object picked at random (or of
    everything), one of everything. Otherwise every word stands alone.
    """
    entries = tuple(_entry(episode, second, rng, merged) for second in range(math.ceil(episode.duration_s)))
    return Reading(
        entries=entries,
        caption=caption(episode),
        speech=speech(episode),
        questions=_questions(episode, rng, kinds, questions),
    )


def transcript(episode: Episode) -> str:
    """The plain transcript as one line a second: ``"3: forest red circle 7"``, with what is spoken after a dash."""
    lines = []
    for second in range(math.ceil(episode.duration_s)):
        entry = _entry(episode, second, random.Random(0), merged=False)
        lines.append(f"{second}: {entry.words}" + (f" - {entry.spoken}" if entry.spoken else ""))
    return "\n".join(lines)


def plain_entries(reading: Reading) -> str:
    """The entries of a reading in plain words: ``"forest red circle 7, forest nothing"``."""
    return ", ".join(entry.words for entry in reading.entries)


def _entry(episode: Episode, second: int, rng: random.Random, merged: bool) -> Entry:
    scene = episode.scene_at(second).name
    objects = [(a.colour, a.shape, a.digit) for a in episode.visible_at(second)]
    everything = (scene, *(word for seen in objects for word in seen)) if objects else (scene, NOTHING)
    spoken = " ".join(line.text for line in spoken_between(episode.subtitles, second - 1, second))
    if not merged:
        return Entry(bags=tuple((word,) for word in everything), words=" ".join(everything), spoken=spoken)
    picked = (scene, *rng.choice(objects)) if objects and rng.random() < 0.75 else everything
    return Entry(bags=(picked, everything), words=" ".join(everything), spoken=spoken)


def spoken_between(subtitles: Sequence[Subtitle], after_s: float, until_s: float) -> list[Subtitle]:
    """Subtitle lines that start in the half-open interval ``(after_s, until_s]``."""
    return [line for line in subtitles if after_s < line.start_s <= until_s]


def _questions(episode: Episode, rng: random.Random, kinds: Sequence[str], wanted: int) -> tuple[Question, ...]:
    found: dict[str, Question] = {}
    for _ in range(4 * wanted):
        question = ask(episode, rng.choice(kinds), rng)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == wanted:
            break
    return tuple(found.values())
