"""Sample questions of a run with the frames that the model was shown."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvid_train.data.manifest import Manifest, ManifestRules, Media, read_manifest
from longvid_train.data.media import MediaOptions
from longvid_train.errors import UserError
from longvid_train.evaluation.reading import CONFIG_FILE, Run, config_value
from longvid_train.generate.record import AnswerRecord as Answer
from longvid_train.types import VideoClip
from longvid_train.video import (
    AtTimes,
    DecodeLimits,
    FramesPerSecond,
    Sampling,
    UniformFrames,
    probe,
    read_clip,
    read_image,
    select,
)

_Shown = tuple[Path, Media, tuple[float, float] | None]
"""A file, how its row shows it, and when the evidence is on screen (seconds)."""

MOST_FRAMES = 16
SHORTEST_EDGE = 128
"""Pixels: enough for a thumbnail on a dense screen; smaller frames stay as they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Strip:
    """Some of the frames that a question shows.

    Attributes:
        path: the file.
        frames: ``(h, w, 3)`` uint8 RGB each.
        times_s: presentation time of each frame; None for a still image.
        shown: frames the model was shown, of which these are an even choice.
        evidence: index of the frame that the manifest names as evidence (``meta.evidence_s``), if it names any.
    """

    path: str
    frames: tuple[NDArray[np.uint8], ...]
    times_s: tuple[float | None, ...]
    shown: int
    evidence: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleQuestion:
    """One held-out question: the answers before and after, and what was shown (nothing for a text-only row)."""

    before: Answer
    after: Answer
    strips: tuple[Strip, ...]


def choose_rows(answers: Sequence[Answer], most: int) -> list[int]:
    """Rows to show: of each kind, in the order of the rows, the first right answer and the first that is not right.

    Args:
        answers: answers after training.
        most: rows at most; the kinds that stand last lose theirs first.
    """
    firsts: dict[tuple[str, bool], int] = {}
    for row, answer in enumerate(answers):
        firsts.setdefault((answer.kind, answer.correct == 1.0), row)
    kinds = dict.fromkeys(answer.kind for answer in answers)
    found = [firsts[kind, right] for kind in kinds for right in (True, False) if (kind, right) in firsts]
    return found[:most]


def read_samples(run: Run, most: int) -> tuple[SampleQuestion, ...]:
    """Choose rows of a run and decode their frames, each file once and in a process of its own.

    Raises:
        UserError: a manifest of the run or a video cannot be read, or no longer has the row.
    """
    rows = choose_rows(run.after, most)
    if not rows:
        return ()
    options = media_options(run)
    media = _media_by_id(run, {run.after[row].id for row in rows})
    files = list(dict.fromkeys(medium for row in rows for medium in media[run.after[row].id]))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        strips = dict(zip(files, pool.map(lambda file: _strip(file[0], file[1], file[2], options), files), strict=True))
    return tuple(
        SampleQuestion(
            before=run.before[row],
            after=run.after[row],
            strips=tuple(strips[medium] for medium in media[run.after[row].id]),
        )
        for row in rows
    )


def media_options(run: Run) -> MediaOptions:
    """How the run read its media: ``data.init_args.media`` of its config.

    Raises:
        UserError: the config has none, or one that does not parse.
    """
    path = run.folder / CONFIG_FILE
    values = dict(config_value(run.config, "data.init_args.media", path))
    try:
        values["sampling"] = _sampling(values["sampling"])
        values["limits"] = DecodeLimits(**values["limits"])
        return MediaOptions(**values)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: data.init_args.media does not parse ({error}); run longvid fit again") from error


def _sampling(values: dict[str, Any]) -> Sampling:
    """Build a sampling from its settings: the field that each class requires tells which it is."""
    settings = values.get("init_args", values)
    for required, kind in (("count", UniformFrames), ("fps", FramesPerSecond), ("times_s", AtTimes)):
        if required in settings:
            sampling: Sampling = kind(**settings)
            return sampling
    raise TypeError("sampling needs count, fps or times_s")


def thin_out(count: int, most: int, keep: int | None = None) -> list[int]:
    """At most ``most`` indices spread evenly over ``range(count)``, first and last included.

    ``keep`` takes the place of the nearest of them, if it is not among them.
    """
    if count <= most:
        return list(range(count))
    even = [int(index) for index in np.linspace(0, count - 1, most).round()]
    if keep is not None:
        even[min(range(most), key=lambda place: abs(even[place] - keep))] = keep
    return even


def evidence_index(times_s: Sequence[float], evidence_s: tuple[float, float] | None) -> int | None:
    """Index of the middle one of the frames that show the evidence; None without evidence or a frame of it."""
    if evidence_s is None:
        return None
    inside = [index for index, time_s in enumerate(times_s) if evidence_s[0] <= time_s <= evidence_s[1]]
    return inside[len(inside) // 2] if inside else None


def read_strip(
    path: Path, times_s: Sequence[float], options: MediaOptions, evidence_s: tuple[float, float] | None = None
) -> Strip:
    """Decode an even choice of the frames at ``times_s``, one of the evidence among them, in a process of its own.

    Raises:
        UserError: the video cannot be read.
    """
    evidence = evidence_index(times_s, evidence_s)
    indices = thin_out(len(times_s), MOST_FRAMES, evidence)
    chosen = tuple(times_s[index] for index in indices)
    clip: VideoClip = read_clip(
        path,
        AtTimes(times_s=chosen),
        reader=options.reader,
        isolated=True,
        limits=options.limits,
        shortest_edge=SHORTEST_EDGE,
        exact=options.exact,
    )
    return Strip(
        path=str(path),
        frames=tuple(clip.frames),
        times_s=tuple(clip.timestamps_s.tolist()),
        shown=len(times_s),
        evidence=None if evidence is None else indices.index(evidence),
    )


def image_strip(path: Path, options: MediaOptions) -> Strip:
    """A still image, scaled down to a thumbnail.

    Raises:
        UserError: the image cannot be read.
    """
    picture = Image.fromarray(read_image(path, limits=options.limits))
    picture.thumbnail((2 * SHORTEST_EDGE, 2 * SHORTEST_EDGE))
    return Strip(path=str(path), frames=(np.asarray(picture),), times_s=(None,), shown=1)


def _media_by_id(run: Run, ids: set[str]) -> dict[str, list[_Shown]]:
    """Path, medium and evidence of each medium of the rows with these ids."""
    path = run.folder / CONFIG_FILE
    named = config_value(run.config, "data.init_args.test", path)
    found: dict[str, list[_Shown]] = {}
    for name in [named] if isinstance(named, str) else named:
        manifest = _unchanged_manifest(Path(name), run)
        for sample in manifest:
            if sample.id in ids:
                evidence_s = _evidence_s(sample.meta)
                found[sample.id] = [(manifest.path.parent / medium.path, medium, evidence_s) for medium in sample.media]
    missing = sorted(ids - found.keys())
    if missing:
        raise UserError(f"{path}: data.test has no row '{missing[0]}' that the run answered; --samples 0 shows none")
    return found


def _evidence_s(meta: Mapping[str, Any]) -> tuple[float, float] | None:
    """``meta.evidence_s`` of a row with one question: start and end in seconds."""
    match meta.get("evidence_s"):
        case [int() | float() as start_s, int() | float() as end_s]:
            return float(start_s), float(end_s)
        case _:
            return None


def _unchanged_manifest(path: Path, run: Run) -> Manifest:
    manifest = read_manifest(path, ManifestRules(require_answer=False, check_files=False, allow_outside=True))
    recorded = run.starts[-1].manifest_sha256.get(str(path))
    if recorded is not None and recorded != manifest.sha256:
        raise UserError(
            f"{path}: changed since {run.folder} was trained (its SHA-256 differs from the run record); "
            "restore it, or use --samples 0 for a report without frames"
        )
    return manifest


def _strip(path: Path, medium: Media, evidence_s: tuple[float, float] | None, options: MediaOptions) -> Strip:
    if medium.type == "image":
        return image_strip(path, options)
    sampling = options.sampling
    if medium.start_s or medium.end_s is not None:
        sampling = replace(sampling, start_s=medium.start_s, end_s=medium.end_s)
    info = probe(path, isolated=True, limits=options.limits)
    indices = select(sampling, info.timestamps_s, info.duration_s)
    return read_strip(path, info.timestamps_s[indices].tolist(), options, evidence_s)
