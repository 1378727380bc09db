"""Seeded episodes: what happens in a synthetic video, as plain values. No pixels here.

An episode is a run of scenes (a named background each) in which coloured shapes enter, drift, carry a digit and leave,
with subtitles that speak a code word. Everything follows from ``(split, seed, index)``; splits draw from disjoint
random streams.
"""

import hashlib
import itertools
import random
from dataclasses import dataclass
from typing import Literal

from longvid_train.errors import UserError
from longvid_train.types import Subtitle

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SCENES = ("forest", "desert", "sea", "night", "snow", "city")
DIGITS = tuple("0123456789")
CODE_WORDS = ("apple", "bread", "chair", "drum", "eagle", "fence", "glove", "honey", "igloo", "jelly", "kite", "lemon")

Split = Literal["train", "val", "test"]

SLIDE_S = 0.25
"""An object slides in for this long before ``enter_s`` and out for this long after ``leave_s``."""


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """One object on screen, fully visible from ``enter_s`` to ``leave_s``.

    ``start_xy`` and ``end_xy`` are centres and ``size`` is the object's width, all in fractions of the frame.
    """

    colour: str
    shape: str
    digit: str
    enter_s: float
    leave_s: float
    start_xy: tuple[float, float]
    end_xy: tuple[float, float]
    size: float

    @property
    def name(self) -> str:
        """Colour and shape, e.g. ``"red circle"``."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A background on screen from ``start_s`` to ``end_s``."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Everything that happens in one video."""

    episode_id: str
    split: Split
    duration_s: float
    scenes: tuple[Scene, ...]
    appearances: tuple[Appearance, ...]
    subtitles: tuple[Subtitle, ...]

    def scene_at(self, time_s: float) -> Scene:
        """The scene on screen at ``time_s``; the last one from its start on."""
        return next((scene for scene in reversed(self.scenes) if scene.start_s <= time_s), self.scenes[0])

    def visible_at(self, time_s: float) -> tuple[Appearance, ...]:
        """The objects fully on screen at ``time_s``, in the order they entered."""
        return tuple(a for a in self.appearances if a.enter_s <= time_s < a.leave_s)

    def sliding_or_visible_at(self, time_s: float) -> tuple[Appearance, ...]:
        """The objects wholly or partly on screen at ``time_s``: at most two, never in the same half of the frame."""
        return tuple(a for a in self.appearances if a.enter_s - SLIDE_S < time_s < a.leave_s + SLIDE_S)


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """How busy the world is.

    Attributes:
        duration_s: length of an episode in seconds; appearances fill it.
        on_screen_s: shortest and longest time an object stays. At least 1 s keeps every object on one sampled frame at
            1 FPS.
        gap_s: shortest and longest pause between one object's leaving and the next one's entering.
        overlap: chance that an object enters while the one before it is still there.
        objects_per_scene: fewest and most objects before the background changes.
        subtitles: whether a code word is spoken with some of the objects.
    """

    duration_s: float = 8.0
    on_screen_s: tuple[float, float] = (1.2, 3.0)
    gap_s: tuple[float, float] = (0.0, 0.8)
    overlap: float = 0.15
    objects_per_scene: tuple[int, int] = (2, 4)
    subtitles: bool = False

    def __post_init__(self) -> None:
        """Refuse settings no episode can be made from."""
        if self.duration_s < 1.0:
            raise UserError(f"duration_s {self.duration_s} is too short for an episode; use at least 1 second")
        if not 0.0 < self.on_screen_s[0] <= self.on_screen_s[1]:
            raise UserError(f"on_screen_s {self.on_screen_s} must be a positive range (shortest, longest)")
        if not 0.0 <= self.overlap <= 1.0:
            raise UserError(f"overlap {self.overlap} must be a chance between 0 and 1")


def events_digest(episode: Episode) -> str:
    """Hash what happens in an episode, whatever its id and split: equal for episodes that look and sound alike."""
    events = (episode.duration_s, episode.scenes, episode.appearances, episode.subtitles)
    return hashlib.sha256(repr(events).encode()).hexdigest()


def make_episode(settings: WorldSettings, *, split: Split, seed: int, index: int) -> Episode:
    """Make the ``index``-th episode of a split. The same arguments give the same episode on every machine."""
    rng = random.Random(int.from_bytes(hashlib.sha256(f"{split}/{seed}/{index}".encode()).digest()[:8], "big"))
    appearances = _appearances(settings, rng)
    return Episode(
        episode_id=f"{split}-{seed}-{index:06d}",
        split=split,
        duration_s=settings.duration_s,
        scenes=_scenes(settings, appearances, rng),
        appearances=appearances,
        subtitles=_subtitles(settings, appearances, rng),
    )


def _appearances(settings: WorldSettings, rng: random.Random) -> tuple[Appearance, ...]:
    names = _NameStream(rng)
    placed: list[Appearance] = []
    enter_s = round(rng.uniform(*settings.gap_s), 2)
    while enter_s + settings.on_screen_s[0] <= settings.duration_s:
        leave_s = min(round(enter_s + rng.uniform(*settings.on_screen_s), 2), settings.duration_s)
        colour, shape = next(names)
        placed.append(_place(colour, shape, enter_s, leave_s, _half(placed, enter_s), rng))
        enter_s = _next_entry(settings, placed, rng)
    return tuple(placed)


def _next_entry(settings: WorldSettings, placed: list[Appearance], rng: random.Random) -> float:
    """At most two objects share the screen: the next slides in after the object before the last one has slid out."""
    last = placed[-1]
    free_s = placed[-2].leave_s + 2 * SLIDE_S if len(placed) > 1 else 0.0
    overlapping = rng.random() < settings.overlap
    earliest_s = max(free_s, last.enter_s + 0.5)
    if overlapping and earliest_s < last.leave_s:
        return round(rng.uniform(earliest_s, last.leave_s), 2)
    return round(max(last.leave_s, free_s) + rng.uniform(*settings.gap_s), 2)


def _half(placed: list[Appearance], enter_s: float) -> Literal["any", "left", "right"]:
    """The other half of the frame than the last object's, if that one is still on screen while the next slides in."""
    if not placed or enter_s >= placed[-1].leave_s + 2 * SLIDE_S:
        return "any"
    return "right" if placed[-1].start_xy[0] < 0.5 else "left"


class _NameStream:
    """Colour-shape pairs without repeats until all 36 were used, then reshuffled."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._left: list[tuple[str, str]] = []

    def __next__(self) -> tuple[str, str]:
        if not self._left:
            self._left = [(colour, shape) for colour in COLOURS for shape in SHAPES]
            self._rng.shuffle(self._left)
        return self._left.pop()


def _place(
    colour: str,
    shape: str,
    enter_s: float,
    leave_s: float,
    half: Literal["any", "left", "right"],
    rng: random.Random,
) -> Appearance:
    """Keep every object wholly in its half of the frame, so that overlapping objects never cover each other."""
    side = half if half != "any" else rng.choice(("left", "right"))
    centre_x = 0.25 if side == "left" else 0.75
    size = rng.uniform(0.40, 0.46)

    def somewhere() -> tuple[float, float]:
        return (round(centre_x + rng.uniform(-0.02, 0.02), 4), round(rng.uniform(0.28, 0.72), 4))

    return Appearance(
        colour=colour,
        shape=shape,
        digit=rng.choice(DIGITS),
        enter_s=enter_s,
        leave_s=leave_s,
        start_xy=somewhere(),
        end_xy=somewhere(),
        size=round(size, 4),
    )


def _scenes(settings: WorldSettings, appearances: tuple[Appearance, ...], rng: random.Random) -> tuple[Scene, ...]:
    """Change the background between objects: a cut falls midway between one leaving and the next entering."""
    cuts_s: list[float] = []
    left = rng.randint(*settings.objects_per_scene)
    gone_s = 0.0
    for before, after in itertools.pairwise(appearances):
        left -= 1
        gone_s = max(gone_s, before.leave_s)
        if left <= 0 and after.enter_s >= gone_s:
            cuts_s.append(round((gone_s + after.enter_s) / 2, 3))
            left = rng.randint(*settings.objects_per_scene)
    edges_s = [0.0, *cuts_s, settings.duration_s]
    names = _scene_names(len(edges_s) - 1, rng)
    return tuple(
        Scene(name=name, start_s=start_s, end_s=end_s)
        for name, start_s, end_s in zip(names, edges_s[:-1], edges_s[1:], strict=True)
    )


def _scene_names(count: int, rng: random.Random) -> list[str]:
    names: list[str] = []
    for _ in range(count):
        names.append(rng.choice([name for name in SCENES if not names or name != names[-1]]))
    return names


def _subtitles(
    settings: WorldSettings, appearances: tuple[Appearance, ...], rng: random.Random
) -> tuple[Subtitle, ...]:
    """Speak a code word with about half of the objects, while the object is alone on screen."""
    if not settings.subtitles:
        return ()
    spoken: list[Subtitle] = []
    for index, appearance in enumerate(appearances):
        alone = all(
            other.leave_s <= appearance.enter_s or other.enter_s >= appearance.leave_s
            for other in appearances[max(0, index - 2) : index + 3]
            if other is not appearance
        )
        if alone and rng.random() < 0.5:
            spoken.append(Subtitle(appearance.enter_s, appearance.leave_s, f"the word is {rng.choice(CODE_WORDS)}"))
    return tuple(spoken)
