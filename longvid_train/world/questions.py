"""Questions about an episode whose answers are known, one function a kind, and the caption of an episode or a frame.

Kinds mirror what long-video benchmarks ask: ``needle`` (find one short event and read its surroundings), ``order``,
``count``, ``detail`` (a small glyph), ``description`` and ``subtitle`` (align speech with the picture).
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longvid_train.errors import UserError, nearest
from longvid_train.world.episode import SHAPES, Appearance, Episode

MAX_COUNT = 9
"""Count questions are asked only where the answer is a single digit."""

MAX_DESCRIBED = 8
"""A description lists at most this many objects; busier episodes are not asked for one."""

CAPTION_INSTRUCTIONS = (
    "Describe the video.",
    "What happens in the video?",
    "Give a short account of the video.",
    "Summarise what you see.",
)

IMAGE_INSTRUCTIONS = (
    "Describe the image.",
    "What is in the image?",
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its one right answer, and when the evidence is on screen (seconds)."""

    kind: str
    text: str
    answer: str
    evidence_s: tuple[float, float]


def caption(episode: Episode, start_s: float = 0.0, end_s: float | None = None) -> str:
    """Tell a stretch of an episode in order: ``"in the forest: red circle 7, blue star 2; in the sea: green ring 4"``.

    An object belongs to the scene it enters in. Scenes in which nothing enters are named with nothing after the colon.
    """
    stop_s = episode.duration_s if end_s is None else end_s
    parts = []
    for scene in episode.scenes:
        if scene.end_s <= start_s or scene.start_s >= stop_s:
            continue
        seen = [
            a for a in episode.appearances if scene.start_s <= a.enter_s < scene.end_s and start_s <= a.enter_s < stop_s
        ]
        parts.append(f"in the {scene.name}: " + (", ".join(_sighting(a) for a in seen) or "nothing"))
    return "; ".join(parts)


def frame_caption(episode: Episode, time_s: float) -> str:
    """Tell what one frame shows, in the caption's words."""
    seen = ", ".join(_sighting(a) for a in episode.visible_at(time_s)) or "nothing"
    return f"in the {episode.scene_at(time_s).name}: {seen}"


def speech(episode: Episode) -> str:
    """List what was said with which object, in order: ``"red circle apple, blue star kite"``; empty without speech."""
    spoken = _spoken(episode)
    return ", ".join(f"{a.name} {spoken[a.enter_s]}" for a in episode.appearances if a.enter_s in spoken)


def ask(episode: Episode, kind: str, rng: random.Random) -> Question | None:
    """Draw one question of a kind, or None where the episode has no evidence for one.

    Raises:
        UserError: the kind is unknown.
    """
    if kind not in QUESTION_KINDS:
        raise UserError(
            f"question kind '{kind}' is unknown{nearest(kind, list(QUESTION_KINDS)) or '.'} "
            f"Kinds: {', '.join(QUESTION_KINDS)}"
        )
    return QUESTION_KINDS[kind](episode, rng)


def _needle(episode: Episode, rng: random.Random) -> Question | None:
    found = _choose(_unique(episode), rng)
    if found is None:
        return None
    text = f"In which scene did the {found.name} appear?"
    return Question(kind="needle", text=text, answer=episode.scene_at(found.enter_s).name, evidence_s=_when(found))


def _order(episode: Episode, rng: random.Random) -> Question | None:
    unique = set(_unique(episode))
    pairs = [
        (first, second)
        for first, second in zip(episode.appearances[:-1], episode.appearances[1:], strict=True)
        if first in unique
    ]
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    text = f"What came right after the {first.name}?"
    return Question(kind="order", text=text, answer=second.name, evidence_s=(first.enter_s, second.leave_s))


def _count(episode: Episode, rng: random.Random) -> Question | None:
    shape = rng.choice(SHAPES)
    seen = sum(appearance.shape == shape for appearance in episode.appearances)
    if seen > MAX_COUNT:
        return None
    text = f"How many times did a {shape} appear?"
    return Question(kind="count", text=text, answer=str(seen), evidence_s=(0.0, episode.duration_s))


def _detail(episode: Episode, rng: random.Random) -> Question | None:
    found = _choose(_unique(episode), rng)
    if found is None:
        return None
    text = f"Which digit does the {found.name} carry?"
    return Question(kind="detail", text=text, answer=found.digit, evidence_s=_when(found))


def _description(episode: Episode, rng: random.Random) -> Question | None:
    if not 0 < len(episode.appearances) <= MAX_DESCRIBED:
        return None
    return Question(
        kind="description",
        text=rng.choice(CAPTION_INSTRUCTIONS),
        answer=caption(episode),
        evidence_s=(0.0, episode.duration_s),
    )


def _subtitle(episode: Episode, rng: random.Random) -> Question | None:
    spoken = _spoken(episode)
    candidates = [a for a in _unique(episode) if a.enter_s in spoken]
    found = _choose(candidates, rng)
    if found is None:
        return None
    text = f"Which word was said when the {found.name} was there?"
    return Question(kind="subtitle", text=text, answer=spoken[found.enter_s], evidence_s=_when(found))


def _spoken(episode: Episode) -> dict[float, str]:
    """The code word of every subtitle by the time it starts, which is when its object enters."""
    return {line.start_s: line.text.split()[-1] for line in episode.subtitles}


QUESTION_KINDS: dict[str, Callable[[Episode, random.Random], Question | None]] = {
    "needle": _needle,
    "order": _order,
    "count": _count,
    "detail": _detail,
    "description": _description,
    "subtitle": _subtitle,
}


def _unique(episode: Episode) -> list[Appearance]:
    """Objects whose colour and shape appear once: only they can be asked about by name."""
    times = Counter(appearance.name for appearance in episode.appearances)
    return [appearance for appearance in episode.appearances if times[appearance.name] == 1]


def _choose(candidates: Sequence[Appearance], rng: random.Random) -> Appearance | None:
    return rng.choice(candidates) if candidates else None


def _sighting(appearance: Appearance) -> str:
    return f"{appearance.name} {appearance.digit}"


def _when(appearance: Appearance) -> tuple[float, float]:
    return (appearance.enter_s, appearance.leave_s)
