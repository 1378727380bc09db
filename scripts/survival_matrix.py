"""Kill training runs at random moments, continue them, and prove that they became the uninterrupted run.

  python scripts/survival_matrix.py --out /tmp/survival

Each cell (stage, packing, workers, accumulation) trains a few steps of a nano LLaMA-VID once in one go and once with
SIGKILLs, each at a random moment behind a random micro-batch: in a forward pass, an optimiser step or the writing of a
checkpoint. After each kill the run is continued with ``--ckpt_path last``. A cell passes if, for every micro-batch of
every start, the sample ids, the batch, Python's, numpy's and torch's generators, the parameters, the optimiser and the
schedule have the SHA-256 sums of the run in one go, and the exported weights are equal to the bit.

Called again with the same folder, the script runs the cells that are missing and prints the table of all. Runs are
processes of their own that call the entry of ``longvid``; a fork server has imported the libraries for them.
"""

import argparse
import contextlib
import filecmp
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from longvid_train import cli
from longvid_train.training.last_checkpoint import by_age
from longvid_train.training.trace import differences, read_trace

ROOT = Path(__file__).resolve().parent.parent
STAGES = {
    "1 alignment": ["context_attention", "content_projector"],
    "2 instruction": ["*", "!vision_tower"],
    "3 long video": ["language_model", "content_projector"],
}
ROPE_SCALING = {"3 long video": 2.0}
LIMIT_S = 600.0
LONGEST_DELAY_S = 0.3


@dataclass(frozen=True)
class Cell:
    """One combination of the matrix."""

    stage: str
    packing: bool
    workers: int
    accumulation: int

    @property
    def name(self) -> str:
        packed = "packed" if self.packing else "padded"
        return f"stage{self.stage[0]}_{packed}_workers{self.workers}_accumulation{self.accumulation}"


@dataclass(frozen=True)
class Result:
    """What came of a cell: lines of the trace at each kill, the step each later start continued from, micro-batches
    compared (repeated ones too), and where runs differed."""

    cell: Cell
    killed_after: list[int]
    continued_from: list[int]
    compared: int
    problems: list[str]


def all_cells() -> list[Cell]:
    return [Cell(*values) for values in itertools.product(STAGES, (False, True), (0, 2), (1, 3))]


def prepare(out: Path) -> None:
    """Render a small world of videos, images and texts and assemble the model."""
    if not (out / "world" / "train" / "manifest.jsonl").exists():
        kinds = ["--split", "train=8", "--images", "train=6", "--texts", "train=4"]
        size = ["--duration", "2-4", "--fps", "2", "--size", "84", "--questions-per-episode", "1"]
        run_here(["world", "--out", str(out / "world"), *kinds, *size])
    if not (out / "start").exists():
        run_here(["init", "--out", str(out / "start")])


def run_here(words: list[str]) -> None:
    if status := cli.main(words):
        raise SystemExit(status)


def write_config(cell: Cell, out: Path, steps: int) -> Path:
    """A run of ``steps`` optimiser steps over more than one epoch, with a checkpoint every step."""
    module: dict[str, Any] = {
        "model": str(out / "start"),
        "stage": {"name": cell.stage, "trainable": STAGES[cell.stage]},
        "optimizer": {"lr": 1e-3, "weight_decay": 0.1},
        "rope_scaling": ROPE_SCALING.get(cell.stage, 1.0),
        "torch_threads": 1,
    }
    sampling = {"class_path": "longvid_train.video.UniformFrames", "init_args": {"count": 2}}
    data = {
        "train": str(out / "world" / "train" / "manifest.jsonl"),
        "media": {"sampling": sampling},
        "loading": {"batch_size": 2, "num_workers": cell.workers, "packing": cell.packing},
    }
    config = {
        "seed_everything": 1,
        "wandb": "off",
        "model": {"class_path": "longvid_train.training.module.LlamaVidTraining", "init_args": module},
        "data": {"class_path": "longvid_train.data.datamodule.ManifestDataModule", "init_args": data},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": steps,
            "accumulate_grad_batches": cell.accumulation,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
        },
        "checkpoint": {"every_n_train_steps": 1},
    }
    path = out / cell.name / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def child(words: list[str], log: str) -> None:
    """Be ``longvid`` in a process group of its own, with stderr in a file."""
    os.setsid()
    # Of a process by itself on Linux; a fork server hands its own method on, and each loader worker would import torch.
    multiprocessing.set_start_method("fork", force=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, sys.stderr.fileno())
    sys.argv = ["longvid", *words]
    sys.exit(cli.main(words))


def start(config: Path, run: Path, *more: str) -> Any:
    trace = ["--trainer.callbacks+=longvid_train.training.trace.StateTrace"]
    trace.append(f"--trainer.callbacks.path={run.with_suffix('.jsonl')}")
    words = ["fit", "--config", str(config), "--run_dir", str(run), *trace, *more]
    process = multiprocessing.get_context("forkserver").Process(target=child, args=(words, f"{run}.log"))
    process.start()
    return process


def run_whole(config: Path, run: Path, *more: str) -> None:
    process = start(config, run, *more)
    process.join(LIMIT_S)
    if process.exitcode != 0:
        kill(process)
        raise SystemExit(f"{run} ended with {process.exitcode}; see {run}.log")


def kill(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def run_until(config: Path, run: Path, lines: int, delay_s: float, *more: str) -> bool:
    """Start a run and SIGKILL it ``delay_s`` after its trace has ``lines`` lines; False if it ended before."""
    process = start(config, run, *more)
    deadline = time.monotonic() + LIMIT_S
    while process.is_alive() and len(read_trace(run.with_suffix(".jsonl"))) < lines:
        if time.monotonic() > deadline:
            kill(process)
            raise SystemExit(f"{run} did not reach {lines} micro-batches in {LIMIT_S:.0f} s; see {run}.log")
        time.sleep(0.005)
    time.sleep(delay_s)
    alive = bool(process.is_alive())
    kill(process)
    return alive


def try_cell(cell: Cell, out: Path, steps: int, kills: int, draws: random.Random) -> Result:
    config = write_config(cell, out, steps)
    folder = config.parent
    whole, killed = folder / "whole", folder / "killed"
    for run in (whole, killed):
        shutil.rmtree(run, ignore_errors=True)
        run.with_suffix(".jsonl").unlink(missing_ok=True)
    run_whole(config, whole)
    expected = read_trace(whole.with_suffix(".jsonl"))
    moments: list[int] = []
    steps_kept: list[int] = []
    for _ in range(kills):
        # Behind the first step of this start, so that there is a state to continue from.
        first = len(read_trace(killed.with_suffix(".jsonl"))) + cell.accumulation + 1
        behind = first + draws.randrange(max(1, len(expected) // (kills + 1) - cell.accumulation))
        if run_until(config, killed, behind, draws.uniform(0, LONGEST_DELAY_S), *resume(killed)):
            moments.append(len(read_trace(killed.with_suffix(".jsonl"))))
            steps_kept.append(max((age.step for age in by_age(killed / "checkpoints")[0]), default=0))
    run_whole(config, killed, *resume(killed))
    trace = read_trace(killed.with_suffix(".jsonl"))
    problems = differences(expected, trace)
    if len(moments) < kills or 0 in steps_kept:
        problems.append(f"only {len(moments)} of {kills} kills met a running process, or one left no checkpoint")
    exports = [run / "model" / "model.safetensors" for run in (whole, killed)]
    if not filecmp.cmp(*exports, shallow=False):
        problems.append("the exported weights differ")
    return Result(cell, moments, steps_kept, len(trace), problems)


def resume(run: Path) -> list[str]:
    return ["--ckpt_path", "last"] if any((run / "checkpoints").glob("*.ckpt")) else []


def table(results: list[Result]) -> str:
    lines = [
        "| stage | batches | workers | accumulation | killed behind micro-batch | continued from step | same bits |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {result.cell: result for result in results}
    for cell in all_cells():
        packed = "packed" if cell.packing else "padded"
        setting = f"{cell.stage} | {packed} | {cell.workers} | {cell.accumulation}"
        if cell not in found:
            lines.append(f"| {setting} | | | not yet run |")
            continue
        result = found[cell]
        verdict = "yes" if not result.problems else f"**no**: {result.problems[0]}"
        killed, kept = (", ".join(map(str, numbers)) for numbers in (result.killed_after, result.continued_from))
        lines.append(f"| {setting} | {killed} | {kept} | {verdict} |")
    passed = sum(not result.problems for result in results)
    return "\n".join([f"{passed} of {len(results)} cells that ran pass.", "", *lines])


def read_results(path: Path) -> list[Result]:
    """Results of earlier calls with the same folder."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [Result(**{**row, "cell": Cell(**row["cell"])}) for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of a run")
    parser.add_argument("--kills", type=int, default=1, help="kills of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--cells", default="", help="names of cells in the order to run, comma-separated; default all")
    given = parser.parse_args()
    cells = {cell.name: cell for cell in all_cells()}
    names = given.cells.split(",") if given.cells else list(cells)
    if unknown := [name for name in names if name not in cells]:
        parser.error(f"--cells {unknown[0]}: the cells are {', '.join(cells)}")
    chosen = [cells[name] for name in names]
    given.out.mkdir(parents=True, exist_ok=True)
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["longvid_train.training.cli", "longvid_train.training.module", "longvid_train.data.datamodule"]
    )
    prepare(given.out)
    record = given.out / "results.jsonl"
    done = {result.cell for result in read_results(record)}
    for cell in chosen:
        if cell not in done:
            result = try_cell(cell, given.out, given.steps, given.kills, random.Random(f"{given.seed}:{cell.name}"))
            with record.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(asdict(result)) + "\n")
    results = read_results(record)
    print(table(results))
    return int(any(result.problems for result in results))


if __name__ == "__main__":
    sys.exit(main())
