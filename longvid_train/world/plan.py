"""All that a world will hold, worked out before a frame is drawn: manifests, subtitles and what is to be rendered."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Literal, cast

from longvid_train import __version__
from longvid_train.errors import UserError
from longvid_train.world.encode import srt_text
from longvid_train.world.episode import Episode, Split, WorldSettings, events_digest, make_episode
from longvid_train.world.rows import Row, image_rows, text_rows, video_rows
from longvid_train.world.settings import BuildSettings, SetSettings

FIRST_INDEX = {"videos": 0, "images": 1_000_000, "texts": 2_000_000}
"""Index of the first episode of each use, so that more videos never change the images."""

_OVERLAP_STEP_S = 1.3
"""Mean time from one object's entry to the next one's when they overlap (measured)."""

_STILL_STEP_S = 0.05

RECORD_NAME = "world.json"
MANIFEST_NAME = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to render: a whole episode as mp4 (``time_s`` is None), or the frame at ``time_s`` as an image."""

    path: str
    episode: Episode
    time_s: float | None
    fps: Fraction
    size_px: int
    gop: int
    crf: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A world on paper. Paths are relative to its folder.

    Attributes:
        texts: content of every manifest and srt file by path.
        jobs: what is to be rendered, in order.
        record: content of ``world.json``: settings, counts, package version and a hash of ``texts``.
    """

    texts: dict[str, str]
    jobs: tuple[Job, ...]
    record: dict[str, Any]


def make_plan(settings: BuildSettings) -> Plan:
    """Work a world out. The same settings give the same plan.

    Raises:
        UserError: no question of the kinds asked for fits any episode of a split.
    """
    texts: dict[str, str] = {}
    jobs: list[Job] = []
    counts: dict[str, dict[str, int]] = {}
    seen: dict[str, str] = {}
    for position, one in enumerate(settings.sets):
        for split in one.splits:
            folder = f"{one.name}/{split}" if one.name else split
            part = _Part(one, cast(Split, split), settings.seed + position, folder)
            part.fill()
            for digest in part.events:
                first_split = seen.setdefault(digest, split)
                assert first_split == split, f"{folder} repeats an episode of split {first_split}"
            texts |= part.texts
            jobs += part.jobs
            counts[folder] = part.counts()
    return Plan(texts=texts, jobs=tuple(jobs), record=_record(settings, counts, texts))


def _record(settings: BuildSettings, counts: dict[str, dict[str, int]], texts: dict[str, str]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path, text in sorted(texts.items()):
        digest.update(f"{path}\0{text}\0".encode())
    return {
        "package": "longvid-train",
        "version": __version__,
        "seed": settings.seed,
        "sets": [_plain_set(one) for one in settings.sets],
        "counts": counts,
        "content_sha256": digest.hexdigest(),
    }


def _plain_set(one: SetSettings) -> dict[str, Any]:
    plain = json.loads(json.dumps(asdict(one), default=str))
    return cast(dict[str, Any], plain)


class _Part:
    """One split of one set while it is being worked out."""

    def __init__(self, settings: SetSettings, split: Split, seed: int, folder: str) -> None:
        self.texts: dict[str, str] = {}
        self.jobs: list[Job] = []
        self.events: list[str] = []
        self._settings = settings
        self._split = split
        self._seed = seed
        self._folder = folder
        self._rows: list[Row] = []
        self._made = dict.fromkeys(FIRST_INDEX, 0)

    def fill(self) -> None:
        for episode, rng in self._episodes("videos"):
            self._add_video(episode, rng)
        for episode, rng in self._episodes("images"):
            self._add_image(episode, rng)
        for episode, rng in self._episodes("texts"):
            self._keep("texts", text_rows(episode, self._settings, rng))
        if not self._rows:
            raise UserError(
                f"{self._folder}: no question of kinds {', '.join(self._settings.kinds)} fits any of its episodes; "
                "name more kinds or change the duration"
            )
        manifest = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows)
        self.texts[f"{self._folder}/{MANIFEST_NAME}"] = manifest

    def counts(self) -> dict[str, int]:
        return {"rows": len(self._rows), **self._made}

    def _episodes(self, use: Literal["videos", "images", "texts"]) -> Iterator[tuple[Episode, random.Random]]:
        wanted: int = getattr(self._settings, use).get(self._split, 0)
        for index in range(FIRST_INDEX[use], FIRST_INDEX[use] + wanted):
            rng = _stream(self._split, self._seed, index)
            # A transcript has one line a second, so a text's length is a whole number of seconds.
            rate = Fraction(1) if use == "texts" else self._settings.fps
            world = world_settings(self._settings, _duration_s(self._settings, rate, rng))
            episode = make_episode(world, split=self._split, seed=self._seed, index=index)
            self.events.append(events_digest(episode))
            yield episode, rng

    def _add_video(self, episode: Episode, rng: random.Random) -> None:
        path = f"videos/{episode.episode_id}.mp4"
        subtitles = f"videos/{episode.episode_id}.srt" if self._settings.subtitles else None
        rows = video_rows(episode, self._settings, rng, path, subtitles)
        if self._keep("videos", rows):
            self._add_job(path, episode, None)
            if subtitles:
                self.texts[f"{self._folder}/{subtitles}"] = srt_text(episode.subtitles)

    def _add_image(self, episode: Episode, rng: random.Random) -> None:
        time_s = still_time_s(episode, rng)
        path = f"images/{episode.episode_id}.{self._settings.image_format}"
        if self._keep("images", image_rows(episode, time_s, self._settings, rng, path)):
            self._add_job(path, episode, time_s)

    def _keep(self, use: str, rows: list[Row]) -> bool:
        """An episode nothing can be asked about is left out."""
        self._rows += rows
        self._made[use] += bool(rows)
        return bool(rows)

    def _add_job(self, path: str, episode: Episode, time_s: float | None) -> None:
        one = self._settings
        self.jobs.append(
            Job(
                path=f"{self._folder}/{path}",
                episode=episode,
                time_s=time_s,
                fps=one.fps,
                size_px=one.size_px,
                gop=one.gop,
                crf=one.crf,
            )
        )


def still_time_s(episode: Episode, rng: random.Random) -> float:
    """Draw a moment with something to see and no object half on screen. The first object's entry is always one."""
    for shown in rng.sample(episode.appearances, len(episode.appearances)):
        steps = int((shown.leave_s - shown.enter_s) / _STILL_STEP_S)
        moments_s = [round(shown.enter_s + _STILL_STEP_S * step, 2) for step in range(steps)]
        clear_s = [t for t in moments_s if episode.sliding_or_visible_at(t) == episode.visible_at(t)]
        if clear_s:
            return rng.choice(clear_s)
    raise AssertionError(f"{episode.episode_id} has no moment for a still image")


def _stream(split: str, seed: int, index: int) -> random.Random:
    """The random stream of an episode's length and questions, apart from the one of its events."""
    name = f"questions/{split}/{seed}/{index}"
    return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def world_settings(settings: SetSettings, duration_s: float) -> WorldSettings:
    """How busy an episode of this length is: the usual pauses, or longer ones to stay near ``most_objects``."""
    usual = WorldSettings(duration_s=duration_s, overlap=settings.overlap, subtitles=settings.subtitles)
    stay_s = sum(usual.on_screen_s) / 2
    if settings.overlap == 1.0:
        return usual
    pause_s = (duration_s / settings.most_objects - settings.overlap * _OVERLAP_STEP_S) / (
        1 - settings.overlap
    ) - stay_s
    if pause_s <= sum(usual.gap_s) / 2:
        return usual
    return replace(usual, gap_s=(0.5 * pause_s, 1.5 * pause_s))


def _duration_s(settings: SetSettings, fps: Fraction, rng: random.Random) -> float:
    """A length from the range, as a whole number of frames."""
    frames = round(rng.uniform(*settings.duration_s) * fps)
    return float(frames / fps)
