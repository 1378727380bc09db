"""Measure how decoder threads should be spent: on groups of pictures side by side, or inside one decoder.

    python -m scripts.bench.decoder_threads --out bench/ --repeats 5

Uses the files of ``video_readers.py`` (made on first use) and reads 32 and 256 evenly spaced frames of each in three
ways, interleaved within each repeat so that drift hits all alike: one decoder with one thread (the baseline), one
decoder with all threads (FFmpeg's automatic choice of frame and slice threads), and one single-threaded decoder a
core, as the reader does. Prints medians and ratios to the baseline.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvid_train.files import write_text
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.pyav_reader import Group, _shared, _work, group_by_keyframe, usable_cores
from longvid_train.video.source import Source, open_source
from scripts.bench.video_readers import HEIGHT, WIDTH, write_hour, write_minute


def read(source: Source, count: int, *, decoders: int, threads: int) -> NDArray[np.uint8]:
    """Read ``count`` evenly spaced frames with so many decoders of so many threads each."""
    indices = np.rint(np.linspace(0, len(source.index.pts) - 1, count)).astype(np.int64)
    output = np.empty((count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    slots = {int(pts): slot for slot, pts in enumerate(source.index.pts[indices])}
    queue: Iterator[Group] = iter(group_by_keyframe(source, indices))
    with ThreadPoolExecutor(decoders) as pool:
        for share in [pool.submit(_work, source, _shared(queue), slots, output, threads) for _ in range(decoders)]:
            share.result()
    return output


def compare(path: Path, count: int, repeats: int) -> list[tuple[str, float]]:
    """Median seconds of each way; all three must give the same frames."""
    source = open_source(str(path), DecodeLimits())
    cores = usable_cores()
    ways: dict[str, Callable[[], NDArray[np.uint8]]] = {
        "one decoder, 1 thread": lambda: read(source, count, decoders=1, threads=1),
        f"one decoder, {cores} threads": lambda: read(source, count, decoders=1, threads=cores),
        f"{cores} decoders, 1 thread each": lambda: read(source, count, decoders=cores, threads=1),
    }
    frames = [way() for way in ways.values()]
    if not all(np.array_equal(frames[0], other) for other in frames[1:]):
        raise RuntimeError(f"{path}: the ways give different frames")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return [(name, statistics.median(values)) for name, values in seconds.items()]


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files and the table")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats after one warm-up (5)")
    parser.add_argument("--counts", type=int, nargs="+", default=[32, 256], help="frames to read of each file (32 256)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    minute, hour = arguments.out / "minute.mp4", arguments.out / "hour.mp4"
    if not minute.exists():
        write_minute(minute)
    if not hour.exists():
        write_hour(hour, minute)
    lines = ["| file | frames | way | seconds | ratio |", "|---|---|---|---|---|"]
    for path in (minute, hour):
        for count in arguments.counts:
            results = compare(path, count, arguments.repeats)
            lines += [
                f"| {path.stem} | {count} | {name} | {taken:.2f} | {taken / results[0][1]:.2f} |"
                for name, taken in results
            ]
    text = (
        "\n".join(lines)
        + f"\n\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end, medians of {arguments.repeats}.\n"
    )
    write_text(arguments.out / "decoder_threads.md", text)
    print(text)


if __name__ == "__main__":
    main()
