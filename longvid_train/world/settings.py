"""What to build: one or several sets of episodes, checked before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, Literal, get_args

from longvid_train.errors import UserError, nearest
from longvid_train.world.episode import Split, WorldSettings
from longvid_train.world.questions import QUESTION_KINDS
from longvid_train.world.render import MIN_SIZE_PX

Style = Literal["caption", "qa"]
ImageFormat = Literal["png", "jpg"]

STILL_KINDS = ("needle", "count", "detail")
"""Question kinds one frame can answer."""

MIN_DURATION_S = 2.0
"""An episode this long has at least one object."""

MAX_DURATION_S = 4 * 3600.0
MAX_COUNT_OF_EPISODES = 1_000_000
MIN_FPS, MAX_FPS = 1, 240
MAX_SIZE_PX = 2048


@dataclass(frozen=True, kw_only=True)
class SetSettings:
    """One set of episodes: how many, how they look and what is asked about them.

    Attributes:
        name: folder of the set under the world's folder; empty for the world's folder itself.
        videos: episodes rendered as videos, by split.
        images: further episodes of which one frame is kept as an image, by split.
        texts: further episodes told only in words, by split.
        duration_s: shortest and longest episode, drawn per episode and rounded to whole frames.
        fps: frames a second, at least 1 so that no object is missed.
        size_px: width and height of the frames, even.
        style: ``caption`` gives a row with the caption of the video or image, ``qa`` gives questions with answers.
        kinds: question kinds asked (``qa`` videos and all texts); images are asked those of ``STILL_KINDS`` among them.
        questions_per_episode: most questions asked about an episode.
        multi_turn: put all questions about an episode into one conversation instead of one row each.
        subtitles: speak code words; they are written as ``.srt`` and named in the rows' media.
        overlap: chance that an object enters while another is there.
        most_objects: about how many objects an episode has at most: long ones get longer pauses, so that names (there
            are 36) seldom repeat and can be asked about.
        gop: frames between two keyframes at most.
        crf: x264's constant rate factor; smaller is better and bigger.
        image_format: file format of the images.
    """

    name: str = ""
    videos: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, int] = field(default_factory=dict)
    duration_s: tuple[float, float] = (8.0, 8.0)
    fps: Fraction = Fraction(4)
    size_px: int = 112
    style: Style = "qa"
    kinds: tuple[str, ...] = ("needle", "order", "count", "detail")
    questions_per_episode: int = 3
    multi_turn: bool = False
    subtitles: bool = False
    overlap: float = WorldSettings.overlap
    most_objects: int = 30
    gop: int = 16
    crf: int = 18
    image_format: ImageFormat = "png"

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        _check_counts(self)
        _check_picture(self)
        _check_questions(self)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have anything, in the order train, val, test."""
        return tuple(
            split
            for split in get_args(Split)
            if any(counts.get(split, 0) for counts in (self.videos, self.images, self.texts))
        )


def _check_counts(settings: SetSettings) -> None:
    if settings.name and not settings.name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"set name '{settings.name}' must be a folder name of letters, digits, '-' and '_'")
    for what in ("videos", "images", "texts"):
        for split, count in getattr(settings, what).items():
            if split not in get_args(Split):
                raise UserError(
                    f"split '{split}' is unknown{nearest(split, list(get_args(Split))) or '.'} Splits: train, val, test"
                )
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise UserError(f"{what}: {split}={count!r} must be a whole number, zero or more")
            if count > MAX_COUNT_OF_EPISODES:
                raise UserError(f"{what}: {split}={count} must be at most {MAX_COUNT_OF_EPISODES}; use several seeds")
    if not settings.splits:
        raise UserError(
            f"set '{settings.name}' is empty; give a count, e.g. videos: {{train: 200}} or --split train=200"
        )


def _check_picture(settings: SetSettings) -> None:
    shortest_s, longest_s = settings.duration_s
    if not MIN_DURATION_S <= shortest_s <= longest_s <= MAX_DURATION_S:
        raise UserError(
            f"duration {shortest_s:g}-{longest_s:g} s must be a range (shortest, longest) between "
            f"{MIN_DURATION_S:g} and {MAX_DURATION_S:g} seconds"
        )
    if not MIN_FPS <= settings.fps <= MAX_FPS:
        raise UserError(f"fps {settings.fps} must lie between {MIN_FPS} and {MAX_FPS}; below 1 objects would be missed")
    if not MIN_SIZE_PX <= settings.size_px <= MAX_SIZE_PX or settings.size_px % 2:
        raise UserError(f"size {settings.size_px} must be an even number of pixels from {MIN_SIZE_PX} to {MAX_SIZE_PX}")
    if settings.most_objects < 1:
        raise UserError(f"most_objects {settings.most_objects} must be at least 1")
    if settings.gop < 1:
        raise UserError(f"gop {settings.gop} must be at least 1 frame")
    if not 0 <= settings.crf <= 51:
        raise UserError(f"crf {settings.crf} must lie between 0 (lossless) and 51")
    if settings.image_format not in get_args(ImageFormat):
        raise UserError(f"image format '{settings.image_format}' is unknown; use png or jpg")
    if not 0.0 <= settings.overlap <= 1.0:
        raise UserError(f"overlap {settings.overlap} must be a chance between 0 and 1")


def _check_questions(settings: SetSettings) -> None:
    if settings.style not in get_args(Style):
        raise UserError(f"style '{settings.style}' is unknown; use caption or qa")
    if not settings.kinds:
        raise UserError(f"kinds is empty; name some of {', '.join(QUESTION_KINDS)}")
    for kind in settings.kinds:
        if kind not in QUESTION_KINDS:
            raise UserError(
                f"question kind '{kind}' is unknown{nearest(kind, list(QUESTION_KINDS)) or '.'} "
                f"Kinds: {', '.join(QUESTION_KINDS)}"
            )
    if settings.questions_per_episode < 1:
        raise UserError(f"questions per episode {settings.questions_per_episode} must be at least 1")
    if "subtitle" in settings.kinds and not settings.subtitles:
        raise UserError("kind 'subtitle' asks about spoken words; switch subtitles on or leave the kind out")
    if any(settings.images.values()) and settings.style == "qa" and not set(settings.kinds) & set(STILL_KINDS):
        raise UserError(f"images can be asked {', '.join(STILL_KINDS)} only; add one to kinds or leave images out")


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """A whole world: its sets and the seed everything follows from."""

    sets: tuple[SetSettings, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sets that would write over each other."""
        names = [one.name for one in self.sets]
        if not names:
            raise UserError("the world has no sets; list at least one under 'sets'")
        if len(names) > 1 and (len(set(names)) < len(names) or "" in names):
            raise UserError(f"sets must have different names, got {', '.join(repr(name) for name in names)}")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} must be zero or more")


def parse_world(value: object, *, where: str) -> BuildSettings:
    """Read a world from plain values: ``{seed: 0, defaults: {...}, sets: [{name: ..., videos: {train: 8}}, ...]}``.

    ``defaults`` holds settings for every set. ``where`` names the file in messages.

    Raises:
        UserError: a key is unknown or a value cannot be used.
    """
    world = _mapping(value, where)
    _known(world, ("seed", "defaults", "sets"), where)
    defaults = _mapping(world.get("defaults", {}), f"{where}: defaults")
    sets = world.get("sets")
    if not isinstance(sets, list):
        raise UserError(f"{where}: 'sets' must be a list of sets")
    seed = world.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"{where}: seed {seed!r} must be a whole number")
    return BuildSettings(
        seed=seed,
        sets=tuple(
            parse_set({**defaults, **_mapping(one, f"{where}: set {n}")}, where=f"{where}: set {n}")
            for n, one in enumerate(sets)
        ),
    )


def parse_set(values: Mapping[str, Any], *, where: str) -> SetSettings:
    """Read one set from plain values: durations as a number or a pair, fps as a number or ``"30000/1001"``.

    Raises:
        UserError: a key is unknown or a value cannot be used.
    """
    _known(values, [one.name for one in fields(SetSettings)], where)
    parsed = dict(values)
    for key in ("videos", "images", "texts"):
        if key in parsed:
            parsed[key] = dict(_mapping(parsed[key], f"{where}: {key}"))
    if "duration_s" in parsed:
        parsed["duration_s"] = parse_duration(parsed["duration_s"])
    if "fps" in parsed:
        parsed["fps"] = parse_fps(parsed["fps"])
    if "kinds" in parsed:
        parsed["kinds"] = _names(parsed["kinds"], f"{where}: kinds")
    _check_types(parsed, where)
    return SetSettings(**parsed)


def parse_duration(value: object) -> tuple[float, float]:
    """Read ``8``, ``"4-8"`` or ``[4, 8]`` as ``(shortest, longest)`` seconds."""
    ends: list[Any] = value.split("-") if isinstance(value, str) else [value]
    if isinstance(value, list | tuple):
        ends = list(value)
    try:
        numbers = [float(end) for end in ends]
    except (TypeError, ValueError):
        raise UserError(f"duration {value!r} must be seconds, e.g. 8 or 4-8") from None
    if len(numbers) not in (1, 2):
        raise UserError(f"duration {value!r} must be seconds, e.g. 8 or 4-8")
    return numbers[0], numbers[-1]


def parse_fps(value: object) -> Fraction:
    """Read ``4``, ``29.97`` or ``"30000/1001"`` as an exact rate."""
    try:
        return Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise UserError(f"fps {value!r} must be a number or a fraction, e.g. 4 or 30000/1001") from None


def _names(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    if isinstance(value, list | tuple):
        return tuple(str(name) for name in value)
    raise UserError(f"{where} must be a list of names, got {value!r}")


_EXPECTED: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "size_px": (int,),
    "style": (str,),
    "questions_per_episode": (int,),
    "multi_turn": (bool,),
    "subtitles": (bool,),
    "overlap": (int, float),
    "most_objects": (int,),
    "gop": (int,),
    "crf": (int,),
    "image_format": (str,),
}


def _check_types(values: Mapping[str, Any], where: str) -> None:
    for key, types in _EXPECTED.items():
        value = values.get(key)
        wrong_bool = isinstance(value, bool) and bool not in types
        if key in values and (wrong_bool or not isinstance(value, types)):
            raise UserError(f"{where}: {key} {value!r} must be of type {types[-1].__name__}")


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a mapping of names to values, got {value!r}")
    return value


def _known(values: Mapping[str, Any], valid: list[str] | tuple[str, ...], where: str) -> None:
    for key in values:
        if key not in valid:
            raise UserError(
                f"{where}: '{key}' is unknown{nearest(str(key), list(valid)) or '.'} Keys: {', '.join(valid)}"
            )
