"""Building a world on disk: manifests and subtitles first, then every video and image, over several processes."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvid_train.errors import UserError
from longvid_train.files import atomic_path, write_json, write_text
from longvid_train.pool import worker_pool
from longvid_train.world.encode import write_mp4
from longvid_train.world.plan import RECORD_NAME, Job, Plan, make_plan
from longvid_train.world.render import render_frame
from longvid_train.world.settings import BuildSettings


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build did."""

    out: str
    counts: dict[str, dict[str, int]]
    rendered: int
    kept: int
    seconds: float
    content_sha256: str


def build_world(
    settings: BuildSettings,
    out: Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> BuildSummary:
    """Write a world to ``out``; render only what is missing if ``out`` holds the same world, unfinished or whole.

    ``world.json`` is written first, so an interrupted build can be taken up again. Files appear whole or not at all.

    Args:
        settings: what to build.
        out: the world's folder.
        workers: processes that render; 1 renders in this process.
        overwrite: replace a different world in ``out``. Only folders that world's record names are removed.
        on_progress: called with files done and files in all, after each file.

    Raises:
        UserError: ``out`` holds something else, or ``workers`` is below 1.
    """
    if workers < 1:
        raise UserError(f"workers {workers} must be at least 1")
    started_s = time.monotonic()
    plan = make_plan(settings)
    _prepare(out, plan, overwrite)
    write_json(out / RECORD_NAME, plan.record)
    for path, text in plan.texts.items():
        write_text(out / path, text)
    missing = [job for job in plan.jobs if not (out / job.path).exists()]
    kept = len(plan.jobs) - len(missing)
    for done, _ in enumerate(_render_all(missing, out, workers), start=kept + 1):
        if on_progress is not None:
            on_progress(done, len(plan.jobs))
    return BuildSummary(
        out=str(out),
        counts=plan.record["counts"],
        rendered=len(missing),
        kept=kept,
        seconds=round(time.monotonic() - started_s, 3),
        content_sha256=plan.record["content_sha256"],
    )


def _prepare(out: Path, plan: Plan, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the world")
    if not out.exists() or not any(out.iterdir()) or _holds(out, plan):
        return
    if not overwrite:
        raise UserError(f"{out} is not empty and holds something else; add --overwrite or choose another")
    _remove_world(out)
    for job in plan.jobs:
        (out / job.path).unlink(missing_ok=True)


def _holds(out: Path, plan: Plan) -> bool:
    return _read_record(out) == plan.record


def _read_record(out: Path) -> object:
    try:
        return json.loads((out / RECORD_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _remove_world(out: Path) -> None:
    """Remove what an earlier build wrote; leave every other file alone."""
    record = _read_record(out)
    counts = record.get("counts") if isinstance(record, dict) else None
    for folder in counts if isinstance(counts, dict) else ():
        target = out / folder
        if target.resolve().is_relative_to(out.resolve()) and target.resolve() != out.resolve() and target.is_dir():
            shutil.rmtree(target)
    (out / RECORD_NAME).unlink(missing_ok=True)


def _render_all(jobs: list[Job], out: Path, workers: int) -> Iterator[None]:
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            render_job(job, out)
            yield
        return
    with worker_pool(min(workers, len(jobs))) as pool:
        for finished in as_completed([pool.submit(render_job, job, out) for job in jobs]):
            yield finished.result()


def render_job(job: Job, out: Path) -> None:
    """Render one file under ``out``."""
    if job.time_s is None:
        write_mp4(out / job.path, episode_frames(job), fps=job.fps, gop=job.gop, crf=job.crf)
        return
    with atomic_path(out / job.path) as temporary:
        Image.fromarray(render_frame(job.episode, job.time_s, job.size_px)).save(temporary, quality=95)


def episode_frames(job: Job) -> Iterator[NDArray[np.uint8]]:
    """Yield the episode's frames, ``(size_px, size_px, 3)`` uint8, one by one; frame ``i`` shows time ``i / fps``."""
    for number in range(round(job.episode.duration_s * job.fps)):
        yield render_frame(job.episode, float(number / job.fps), job.size_px)
