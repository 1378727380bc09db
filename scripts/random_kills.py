"""Kill a random rank of a two-process run at random moments, again and again, and prove that nothing was lost.

  python -m scripts.random_kills --out /tmp/kills --strategy ddp
  python -m scripts.random_kills --out /tmp/kills --strategy zero2

One run of a nano LLaMA-VID goes to its end undisturbed. Another has one of its processes killed with SIGKILL 20 times,
at a random moment behind a random micro-batch (while it starts, loads, trains, saves or exchanges gradients); the
other process must then end by itself (only one that still waits for the killed one to appear at all is ended here, as a
launcher does), and the run is continued with ``--ckpt_path last``. It passes if, on each rank and for each micro-batch
of each start, the sample ids, the batch, the generators, parameters, optimiser and schedule have the SHA-256 sums of
the undisturbed run, losses and gradient norms are equal, and the exported weights are equal to the bit. The processes
are forked from one that has imported the libraries.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from longvid_train.training.last_checkpoint import by_age
from longvid_train.training.trace import differences, rank_trace, read_trace
from longvid_train.training.tracking import read_metrics
from scripts.survival_matrix import ROOT, Cell, child, prepare, resume, write_config

RANKS = 2
LIMIT_S = 900.0
LAUNCHER_S = 60.0
LONGEST_DELAY_S = 0.6
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Kill:
    """One kill: the rank, micro-batches that all starts had done by then, the newest whole state, seconds until the
    other rank had ended, and its exit status."""

    rank: int
    behind: int
    continued_from: int
    others_ended_s: float
    status: int


def rank_main(rank: int, port: int, words: list[str], log: str) -> None:
    """Be one rank of ``longvid fit``, launched from outside."""
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), NODE_RANK="0", LOCAL_RANK=str(rank))
    rank_zero_only.rank = rank
    child(words, log)


def start(config: Path, run: Path, strategy: str, *more: str) -> list[Any]:
    """Start both ranks of ``longvid fit`` under a strategy, with a trace of their states beside the run's folder.

    Args:
        config: of the run.
        run: its folder; the trace is ``run.jsonl``, and what the ranks print goes to ``run.log``.
        strategy: one of ``STRATEGIES``.
        more: further words of the command, ``--ckpt_path last`` among them.

    Returns:
        The processes by rank.
    """
    words = ["fit", "--config", str(config)]
    if strategy == "ddp":
        words += ["--trainer.strategy", "ddp"]
    else:
        words += ["--config", str(ROOT / "configs" / "deepspeed" / f"{strategy}.yaml")]
    trace = ["--trainer.callbacks+=longvid_train.training.trace.StateTrace"]
    trace.append(f"--trainer.callbacks.path={run.with_suffix('.jsonl')}")
    words += ["--run_dir", str(run), "--trainer.devices", str(RANKS), *trace, *more]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("forkserver")
    processes = [fork.Process(target=rank_main, args=(rank, port, words, f"{run}.log")) for rank in range(RANKS)]
    for process in processes:
        process.start()
    return processes


def wait(processes: Sequence[Any], limit_s: float) -> float:
    """Seconds until all have ended; those that have not within ``limit_s`` are killed."""
    began_s = time.monotonic()
    for process in processes:
        process.join(max(0.0, limit_s - (time.monotonic() - began_s)))
    for process in processes:
        process.kill()
        process.join()
    return time.monotonic() - began_s


def run_whole(config: Path, run: Path, strategy: str, *more: str) -> None:
    """Start or continue the run and wait for its end; see `start`.

    Raises:
        SystemExit: a rank failed, or had not ended after ``LIMIT_S``.
    """
    processes = start(config, run, strategy, *more)
    wait(processes, LIMIT_S)
    statuses = [process.exitcode for process in processes]
    if statuses != [0] * RANKS:
        raise SystemExit(f"{run} ended with {statuses}; see {run}.log")


def lines_of(run: Path) -> int:
    """Micro-batches that rank 0 has traced, over all starts."""
    return len(read_trace(run.with_suffix(".jsonl")))


def kill_once(config: Path, run: Path, strategy: str, draws: random.Random) -> Kill | None:
    """Start or continue the run and kill a rank; None if it came to its end before.

    Args:
        config, run, strategy: see `start`.
        draws: decides which rank, behind how many further micro-batches (0 to 4) and after which delay.

    Raises:
        SystemExit: the run does not get as far within ``LIMIT_S``.
    """
    wanted = lines_of(run) + draws.randrange(5)
    rank, delay_s = draws.randrange(RANKS), draws.uniform(0, LONGEST_DELAY_S)
    processes = start(config, run, strategy, *resume(run))
    deadline = time.monotonic() + LIMIT_S
    while lines_of(run) < wanted and all(process.is_alive() for process in processes):
        if time.monotonic() > deadline:
            raise SystemExit(f"{run} did not reach {wanted} micro-batches in {LIMIT_S:.0f} s; see {run}.log")
        time.sleep(0.02)
    time.sleep(delay_s)
    if not processes[rank].is_alive():
        wait(processes, LAUNCHER_S)
        return None
    os.kill(processes[rank].pid, signal.SIGKILL)
    ended_s = wait(processes, LAUNCHER_S)
    readable, _ = by_age(run / "checkpoints") if (run / "checkpoints").exists() else ([], [])
    kept = max(((age.start, age.step) for age in readable), default=(0, 0))[1]
    return Kill(rank, lines_of(run), kept, round(ended_s, 1), processes[1 - rank].exitcode)


def compare(whole: Path, killed: Path) -> list[str]:
    """Where the killed run was not the undisturbed one: states by rank, exported weights, curves; empty if nowhere.

    Args:
        whole, killed: folders of the two runs.
    """
    problems = []
    for rank in range(RANKS):
        traces = [read_trace(rank_trace(run.with_suffix(".jsonl"), rank)) for run in (whole, killed)]
        problems += [f"rank {rank}: {line}" for line in differences(*traces)]
    left, right = (load_file(run / "model" / "model.safetensors") for run in (whole, killed))
    problems += [f"exported {name} differs" for name in left if not torch.equal(left[name], right[name])]
    names = ("step", "train/loss", "train/grad_norm", "train/lr")
    curves = [
        [[line[name] for name in names] for line in read_metrics(run) if "train/loss" in line]
        for run in (whole, killed)
    ]
    return problems + (["the loss curves differ"] if curves[0] != curves[1] else [])


def table(kills: Sequence[Kill]) -> str:
    """The kills as a Markdown table, one a row."""
    lines = ["| kill | rank | behind micro-batch | continued from step | other rank ended after | its status |"]
    lines.append("|---|---|---|---|---|---|")
    for number, kill in enumerate(kills, start=1):
        values = (number, kill.rank, kill.behind, kill.continued_from, f"{kill.others_ended_s} s", kill.status)
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines)


def main() -> int:
    """Read the command line, write the run's config and try it; 0 if nothing was lost, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--strategy", choices=STRATEGIES, default="ddp")
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of the run, of two micro-batches each")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of ranks and moments")
    parser.add_argument("--asynchronous", action="store_true", help="write checkpoints in the background")
    given = parser.parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    given.out.mkdir(parents=True, exist_ok=True)
    modules = ["longvid_train.training.cli", "longvid_train.training.module", "longvid_train.data.datamodule"]
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        modules if given.strategy == "ddp" else [*modules, "deepspeed"]
    )
    prepare(given.out)
    folder = given.out / given.strategy
    shutil.rmtree(folder, ignore_errors=True)
    config = write_config(Cell("2 instruction", packing=False, workers=0, accumulation=2), given.out, given.steps)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"]["init_args"]["loading"]["batch_size"] = 1
    settings["checkpoint"]["asynchronous"] = given.asynchronous
    folder.mkdir()
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return int(bool(try_run(config, folder, given)))


def try_run(config: Path, folder: Path, given: argparse.Namespace) -> list[str]:
    """Make the two runs and print the table and what differs, which is returned.

    Args:
        config: of both runs.
        folder: for them.
        given: strategy, kills and seed of the command line.
    """
    whole, killed = folder / "whole", folder / "killed"
    run_whole(config, whole, given.strategy)
    draws, kills = random.Random(f"{given.seed}:{given.strategy}"), []
    while len(kills) < given.kills:
        kill = kill_once(config, killed, given.strategy, draws)
        if kill is None:
            break
        kills.append(kill)
        print(json.dumps(asdict(kill)), file=sys.stderr, flush=True)
    if not (killed / "model").exists():
        run_whole(config, killed, given.strategy, *resume(killed))
    problems = compare(whole, killed)
    if len(kills) < given.kills:
        problems.append(f"the run came to its end after {len(kills)} kills; give it more --steps")
    print(f"{given.strategy}, {len(kills)} kills, seed {given.seed}: {'; '.join(problems[:5]) or 'the same bits'}\n")
    print(table(kills))
    return problems


if __name__ == "__main__":
    sys.exit(main())
