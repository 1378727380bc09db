"""Write the frames a model would see as numbered PNGs.

example:
  longvid frames holiday.mp4 --frames 8 --out frames/
  longvid frames holiday.mp4 --fps 0.5 --start 60 --end 120 --shortest-edge 224 --out frames/ --json
  longvid frames holiday.mp4 --at 1.5,72 --out frames/

The video is decoded in a process of its own, with limits on time and memory. --json prints one JSON object: path,
reader, sampling, timestamps_s and frames (the PNG of each), duration_s, width, height, exact.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from longvid_train.commands.limits import add_limit_options, limits_of
from longvid_train.errors import UserError
from longvid_train.files import atomic_path
from longvid_train.types import VideoClip
from longvid_train.video import AtTimes, FramesPerSecond, Sampling, UniformFrames, read_clip

_PATTERN = "frame_[0-9]*.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("video", metavar="VIDEO", help="the video file")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--frames", type=int, metavar="N", help="N frames, evenly spaced from the first to the last")
    which.add_argument("--fps", type=float, metavar="F", help="F frames for each second of video")
    which.add_argument("--at", metavar="T1,T2", help="the frames on screen at these seconds")
    parser.add_argument("--max-frames", type=int, metavar="N", help="with --fps: at most N frames, then evenly spaced")
    parser.add_argument("--start", type=float, default=0.0, metavar="S", help="start of the window in seconds (0)")
    parser.add_argument("--end", type=float, metavar="S", help="end of the window in seconds (the end of the video)")
    parser.add_argument("--shortest-edge", type=int, metavar="PX", help="scale frames down to this shorter side")
    parser.add_argument("--reader", default="auto", metavar="NAME", help="auto, pyav or decord (auto)")
    parser.add_argument("--keyframes", action="store_true", help="fast: take the keyframe at or before each frame")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the PNGs, without older ones"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    add_limit_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read the frames and write them; return the exit status."""
    sampling = sampling_of(arguments)
    refuse_older_frames(arguments.out)
    clip = read_clip(
        arguments.video,
        sampling,
        reader=arguments.reader,
        isolated=not arguments.no_isolate,
        limits=limits_of(arguments),
        shortest_edge=arguments.shortest_edge,
        exact=not arguments.keyframes,
    )
    paths = write_frames(clip, arguments.out)
    if arguments.json:
        print(json.dumps(summary(clip, sampling, paths, exact=not arguments.keyframes)))
    else:
        for path, time_s in zip(paths, clip.timestamps_s, strict=True):
            print(f"{path}  {time_s:.3f} s")
    return 0


def sampling_of(arguments: argparse.Namespace) -> Sampling:
    """The sampling that the arguments ask for.

    Raises:
        UserError: ``--at`` is not a list of numbers, ``--max-frames`` stands without ``--fps``, or a value is out of
            range.
    """
    window = {"start_s": arguments.start, "end_s": arguments.end}
    if arguments.max_frames is not None and arguments.fps is None:
        raise UserError("--max-frames has no effect without --fps; remove it or give --fps")
    if arguments.frames is not None:
        return UniformFrames(count=arguments.frames, **window)
    if arguments.fps is not None:
        return FramesPerSecond(fps=arguments.fps, max_frames=arguments.max_frames, **window)
    try:
        times_s = tuple(float(word) for word in arguments.at.split(","))
    except ValueError as error:
        raise UserError(f"--at '{arguments.at}' is not a list of seconds; write it like --at 1.5,72") from error
    return AtTimes(times_s=times_s, **window)


def refuse_older_frames(folder: Path) -> None:
    """Raise `UserError` if ``folder`` is a file or holds numbered frames already: two videos' frames must not mix."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: --out must be a folder, and this is a file")
    older = sorted(folder.glob(_PATTERN)) if folder.is_dir() else []
    if older:
        raise UserError(
            f"{folder}: holds {len(older)} older frames ({older[0].name}, ...); remove them or choose another --out"
        )


def write_frames(clip: VideoClip, folder: Path) -> list[Path]:
    """Write ``frame_000000.png`` and so on, each whole or not at all; return their paths in the clip's order."""
    paths = [folder / f"frame_{number:06d}.png" for number in range(len(clip.frames))]
    for path, frame in zip(paths, clip.frames, strict=True):
        with atomic_path(path) as temporary:
            Image.fromarray(frame).save(temporary, format="PNG")
    return paths


def summary(clip: VideoClip, sampling: Sampling, paths: list[Path], *, exact: bool) -> dict[str, object]:
    """The JSON object of ``--json``."""
    _, height, width, _ = clip.frames.shape
    return {
        "path": clip.path,
        "reader": clip.reader,
        "sampling": {"kind": type(sampling).__name__, **asdict(sampling)},
        "exact": exact,
        "timestamps_s": clip.timestamps_s.tolist(),
        "duration_s": clip.duration_s,
        "width": width,
        "height": height,
        "frames": [str(path) for path in paths],
    }
