"""Measure how long reading a manifest takes and how much memory it costs, from ten thousand to ten million rows.

    python -m scripts.bench.manifest_rows --rows 10000 100000 1000000 10000000 --folder /tmp/rows --out bench/

Each manifest holds questions and answers about videos of its folder, six rows a video; ids are hex digests, which
arrive in no order. ``read`` is ``read_manifest`` with files unchecked (the files do not exist); ``check`` is ``python
-m data_prep.check --no-files``, which parses the rows in ``--processes`` processes and looks for repeated rows too.
Every number comes from a process of its own: ``peak`` is its high-water mark of resident memory (``VmHWM``), the
largest of its children added for ``check``, minus what an interpreter that only imported the code takes. ``temporary``
is the largest size of the private files in the temporary folder, which hold the keys while repeats are looked for.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from longvid_train.data.manifest import Media, Sample, Turn, sample_to_json
from longvid_train.files import atomic_path, write_json

ROWS_A_VIDEO = 6
MIB = 2**20
POLL_S = 0.05

READ = """
import sys, time
from pathlib import Path
from longvid_train.data.manifest import ManifestRules, read_manifest
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, start, cpu = peak(), time.monotonic(), time.process_time()
manifest = read_manifest(Path(sys.argv[1]), ManifestRules(check_files=False))
print(len(manifest), time.monotonic() - start, time.process_time() - cpu, before, peak())
"""

CHECK = """
import resource, sys, time
import data_prep.check
from data_prep.command_line import run_tool
def peaks():
    return [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
def cpu():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
before, start = peaks(), time.monotonic()
status = run_tool("check", [sys.argv[1], "--no-files", "--processes", sys.argv[2]])
assert status == 0, status
print(sys.argv[3], time.monotonic() - start, cpu(), before[0], sum(peaks()) - before[1])
"""


@dataclass(frozen=True)
class Cell:
    """One measured run."""

    what: str
    rows: int
    manifest_bytes: int
    wall_s: float
    cpu_s: float
    rows_per_s: float
    peak_bytes: int
    temporary_bytes: int


def samples(count: int) -> Iterator[Sample]:
    """Questions about videos, all different."""
    for number in range(count):
        video = hashlib.sha1(str(number // ROWS_A_VIDEO).encode()).hexdigest()
        yield Sample(
            id=hashlib.sha1(f"row{number}".encode()).hexdigest(),
            media=(Media(type="video", path=f"videos/{video[:2]}/{video}.mp4", end_s=30.0),),
            conversation=(
                Turn("user", f"<video>\nWhat happens right after the {number % 997}th second of the video?"),
                Turn("assistant", f"Somebody opens the door and carries {number} boxes into the room."),
            ),
            source="benchmark",
            license="CC0-1.0",
            version="1",
        )


def write_rows(folder: Path, count: int) -> Path:
    """Write the manifest of ``count`` rows, once."""
    path = folder / f"rows-{count}.jsonl"
    if not path.exists():
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            for sample in samples(count):
                stream.write(sample_to_json(sample) + b"\n")
    return path


def measure(what: str, path: Path, rows: int, processes: int) -> Cell:
    """Run one cell in a fresh interpreter with a temporary folder of its own."""
    program = {"read": READ, "check": CHECK}[what]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        environment = {**os.environ, "TMPDIR": folder, "SQLITE_TMPDIR": folder}
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path), str(processes), str(rows)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        largest = [0]
        watcher = threading.Thread(target=_watch, args=(process, Path(folder), largest), daemon=True)
        watcher.start()
        output, _ = process.communicate()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{what} of {path} ended with status {process.returncode}")
    found, wall_s, cpu_s, before_kib, peak_kib = (float(word) for word in output.split()[-5:])
    assert found == rows, (found, rows)
    return Cell(
        what=what,
        rows=rows,
        manifest_bytes=path.stat().st_size,
        wall_s=wall_s,
        cpu_s=cpu_s,
        rows_per_s=rows / wall_s,
        peak_bytes=int(peak_kib - before_kib) * 1024,
        temporary_bytes=largest[0],
    )


def _watch(process: "subprocess.Popen[str]", folder: Path, largest: list[int]) -> None:
    """Note the most disk space that files of ``folder``, unlinked ones too, take while the process and its children
    run."""
    while process.poll() is None:
        largest[0] = max(largest[0], _open_bytes(process.pid, folder))
        time.sleep(POLL_S)


def _open_bytes(pid: int, folder: Path) -> int:
    total = 0
    for handle in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if str(handle.readlink()).startswith(str(folder)):
                total += handle.stat().st_size
        except OSError:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--folder", type=Path, required=True, help="where the manifests are made and kept")
    parser.add_argument("--what", nargs="+", choices=("read", "check"), default=["read", "check"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for manifest_rows.json")
    arguments = parser.parse_args()
    cells = []
    print("| what | rows | manifest MiB | rows/s | CPU s | peak MiB | temporary MiB |\n|---|---|---|---|---|---|---|")
    for rows in arguments.rows:
        path = write_rows(arguments.folder, rows)
        for what in arguments.what:
            cell = measure(what, path, rows, arguments.processes)
            cells.append(cell)
            print(
                f"| {what} | {rows:,} | {cell.manifest_bytes / MIB:.0f} | {cell.rows_per_s:,.0f} | {cell.cpu_s:.1f} | "
                f"{cell.peak_bytes / MIB:.0f} | {cell.temporary_bytes / MIB:.0f} |",
                flush=True,
            )
    if arguments.out is not None:
        write_json(arguments.out / "manifest_rows.json", json.loads(json.dumps([asdict(cell) for cell in cells])))


if __name__ == "__main__":
    main()
