"""Compare this package's video reader with decord, PyAV used plainly, and torchcodec: speed, exactness, peak memory.

    python scripts/bench/video_readers.py --out bench/ --repeats 5

Two 640x360 H.264 files at 30 fps (x264's default GOP of at most 250 frames) are made on first use: a minute, with the
frame number painted in, and an hour, which repeats the minute's packets 60 times with running timestamps. 32 and 256
evenly spaced frames of each are read. Every measurement runs in a process of its own, repeats it after one warm-up,
and checks every frame by its painted number (within the minute; a frame wrong by whole minutes would also need a
wrong timestamp).

Writes video_readers.json and video_readers.md to --out and prints the table.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from longvid_train.files import atomic_path, write_json, write_text
from longvid_train.video.decoding import Request, decode
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.sampling import UniformFrames
from longvid_train.video.source import open_source

WIDTH, HEIGHT, RATE, MINUTE_FRAMES, MINUTES = 640, 360, 30, 1800, 60
BITS, BLOCK = 11, 40
COUNTS = [32, 256]
Frames = NDArray[np.uint8]


def paint(number: int, noise: Frames) -> Frames:
    """A drifting textured picture with ``number`` as a row of blocks."""
    shift = number % noise.shape[1] // 2
    picture = noise[:HEIGHT, shift : shift + WIDTH].copy()
    for bit in range(BITS):
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 235 if number >> bit & 1 else 20
    return picture


def painted_number(picture: Frames) -> int:
    """The number painted in a picture."""
    centres = picture[BLOCK // 2, BLOCK // 2 : BITS * BLOCK : BLOCK].mean(axis=1) > 128
    return int(sum(int(bit) << place for place, bit in enumerate(centres)))


def write_minute(path: Path) -> None:
    """Encode one minute."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 255, (HEIGHT // 8, WIDTH // 4, 3), dtype=np.uint8)
    noise = np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(MINUTE_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(paint(number, noise), format="rgb24")))
        container.mux(stream.encode(None))


def write_hour(path: Path, minute: Path) -> None:
    """Repeat the packets of ``minute`` 60 times."""
    with av.open(str(minute)) as old:
        template = old.streams.video[0]
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in old.demux(template) if p.size]
        minute_ticks = int(MINUTE_FRAMES / (RATE * (template.time_base or Fraction(1))))
        with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as new:
            stream = new.add_stream_from_template(template)
            for repeat in range(MINUTES):
                for content, pts, dts, is_keyframe in packets:
                    packet = av.Packet(content)
                    packet.pts, packet.dts = pts + repeat * minute_ticks, dts + repeat * minute_ticks
                    packet.time_base, packet.is_keyframe, packet.stream = template.time_base, is_keyframe, stream
                    new.mux(packet)


def read_ours(path: str, indices: list[int]) -> Frames:
    """This package's reader, as ``read_clip`` uses it."""
    sampling = UniformFrames(count=len(indices))
    limits = DecodeLimits()
    request = Request(path=path, sampling=sampling, reader="auto", limits=limits, shortest_edge=None, exact=True)
    return decode(request).frames


def read_decord(path: str, indices: list[int]) -> Frames:
    """decord ``get_batch`` with its default threads."""
    import decord

    return np.asarray(decord.VideoReader(path).get_batch(indices).asnumpy())


def read_pyav_sequential(path: str, indices: list[int]) -> Frames:
    """PyAV from the start to the last frame wanted."""
    wanted, frames = set(indices), []
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            if number == indices[-1]:
                break
    return np.stack(frames)


def read_pyav_seek(path: str, indices: list[int]) -> Frames:
    """PyAV with a seek for every frame, constant rate assumed."""
    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index in indices:
            pts = round(index / (RATE * (stream.time_base or Fraction(1))))
            container.seek(pts, stream=stream)
            frame = next(frame for frame in container.decode(stream) if frame.pts is not None and frame.pts >= pts)
            frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames)


def read_torchcodec(path: str, indices: list[int]) -> Frames:
    """torchcodec, exact seeking, its default threads."""
    from torchcodec.decoders import VideoDecoder

    return np.asarray(VideoDecoder(path, dimension_order="NHWC").get_frames_at(indices).data.numpy())


READERS: dict[str, Callable[[str, list[int]], Frames]] = {
    "longvid-train": read_ours,
    "decord get_batch": read_decord,
    "PyAV seek per frame": read_pyav_seek,
    "PyAV sequential": read_pyav_sequential,
    "torchcodec": read_torchcodec,
}
PACKAGES = {"decord get_batch": "decord", "torchcodec": "torchcodec"}


def measure(reader: str, path: str, count: int, repeats: int) -> dict[str, object]:
    """Time one reader in this process; called in a fresh one."""
    total = open_source(path, DecodeLimits()).info.frame_count
    indices = np.rint(np.linspace(0, total - 1, count)).astype(int).tolist()
    seconds, cpu_seconds, wrong = [], [], 0
    for repeat in range(repeats + 1):
        started, cpu_started = time.perf_counter(), time.process_time()
        frames = READERS[reader](path, indices)
        if repeat:
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)
        wrong += sum(
            painted_number(frame) != index % MINUTE_FRAMES for frame, index in zip(frames, indices, strict=True)
        )
        del frames
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": seconds,
        "median_s": statistics.median(seconds),
        "median_cpu_s": statistics.median(cpu_seconds),
        "wrong_frames": wrong,
        "peak_bytes": peak,
    }


def measure_apart(reader: str, path: Path, count: int, repeats: int) -> dict[str, object]:
    """`measure` in a process of its own; ``{"absent": reason}`` if the reader is not installed."""
    package = PACKAGES.get(reader)
    if package and importlib.util.find_spec(package) is None:
        return {"absent": f"{package} is not installed"}
    command = [sys.executable, __file__, "--measure", reader, str(path), str(count), str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(results: list[dict[str, object]]) -> str:
    """Markdown: one row a case."""
    lines = [
        "| file | frames | reader | median s | x decord | CPU s | wrong frames | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        name = f"| {row['file']} | {row['count']} | {row['reader']} |"
        if "absent" in row:
            lines.append(f"{name} {row['absent']} | | | | |")
            continue
        ratio = f"{float(str(row['relative_to_decord'])):.2f}" if row["relative_to_decord"] is not None else ""
        peak = float(str(row["peak_bytes"])) / 1e6
        wall, cpu = float(str(row["median_s"])), float(str(row["median_cpu_s"]))
        lines.append(f"{name} {wall:.3f} | {ratio} | {cpu:.2f} | {row['wrong_frames']} | {peak:.0f} |")
    return "\n".join(lines) + "\n"


def compare(folder: Path, repeats: int, skip: list[str], counts: list[int]) -> list[dict[str, object]]:
    """Measure every reader on every case."""
    minute, hour = folder / "minute.mp4", folder / "hour.mp4"
    if not minute.exists():
        write_minute(minute)
    if not hour.exists():
        write_hour(hour, minute)
    results: list[dict[str, object]] = []
    for path in (minute, hour):
        for count in counts:
            rows = []
            for reader in READERS:
                if reader not in skip:
                    print(f"{path.stem} {count} {reader}", file=sys.stderr, flush=True)
                    rows.append(
                        {
                            "file": path.stem,
                            "count": count,
                            "reader": reader,
                            **measure_apart(reader, path, count, repeats),
                        }
                    )
            decord_s = next(
                (row["median_s"] for row in rows if row["reader"] == "decord get_batch" and "median_s" in row), None
            )
            for row in rows:
                both = "median_s" in row and decord_s is not None
                row["relative_to_decord"] = float(str(row["median_s"])) / float(str(decord_s)) if both else None
            results.extend(rows)
    return results


def main() -> None:
    """Parse arguments, compare, write the table and the JSON."""
    if sys.argv[1:2] == ["--measure"]:
        reader, path, count, repeats = sys.argv[2:6]
        print(json.dumps(measure(reader, path, int(count), int(repeats))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files, the JSON and the table")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats after one warm-up (5)")
    parser.add_argument("--skip", action="append", default=[], choices=list(READERS), help="leave a reader out")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="frames to read of each file (32 256)")
    arguments = parser.parse_args()
    results = compare(arguments.out, arguments.repeats, arguments.skip, arguments.counts)
    machine = {
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "av": av.__version__,
    }
    write_json(
        arguments.out / "video_readers.json", {"machine": machine, "repeats": arguments.repeats, "results": results}
    )
    write_text(arguments.out / "video_readers.md", table(results))
    print(table(results))


if __name__ == "__main__":
    main()
