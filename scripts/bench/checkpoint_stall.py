"""How long training stands still for a checkpoint that is written at once, and for one written in the background.

  python -m scripts.bench.checkpoint_stall --out /tmp/stall [--megabytes 150] [--saves 7]

A state of weights and AdamW's two moments is saved through what ``longvid fit`` saves with, to the folder's disk, with
optimiser steps before and behind each save. The stall is the time that the call takes: at once, all of the writing; in
the background, the copy in the host's memory; ``stall_cpu`` is the training thread's own share of it, which other jobs
of the machine do not lengthen (nor does it count the disk). Each state reaches the disk before the next is saved. The
slowest step behind a save shows what the writer takes from the training it runs beside.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import torch

from longvid_train.training.checkpoint_io import AtomicCheckpointIO

WIDTH = 1024
FLOAT_BYTES = 4
COPIES = 3
"""Weights and two moments."""


def build(megabytes: float) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model whose checkpoint has about that size."""
    layers = max(1, round(megabytes * 1e6 / (COPIES * FLOAT_BYTES * WIDTH * WIDTH)))
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> float:
    """One optimiser step; its seconds."""
    began_s = time.perf_counter()
    model(batch).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began_s


def measure(background: bool, out: Path, megabytes: float, saves: int, steps: int) -> dict[str, float]:
    """Medians over ``saves`` of the stall, of the whole time to the disk, and of the slowest step in between, in ms."""
    torch.manual_seed(0)
    model, optimizer = build(megabytes)
    batch = torch.randn(64, WIDTH)
    step(model, optimizer, batch)
    writer = AtomicCheckpointIO()
    writer.queue.background = background
    stalls, busy, durations, slowest, calm = [], [], [], [], []
    for number in range(saves):
        calm.append(max(step(model, optimizer, batch) for _ in range(steps)))
        state = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": number}
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        writer.save_checkpoint(state, out / f"{number}.ckpt")
        busy.append(time.thread_time() - began_cpu_s)
        stalls.append(time.perf_counter() - began_s)
        slowest.append(max(step(model, optimizer, batch) for _ in range(steps)))
        writer.queue.wait()
        durations.append(time.perf_counter() - began_s)
        writer.remove_checkpoint(out / f"{number}.ckpt")
        writer.queue.wait()
    named = {
        "stall": stalls,
        "stall_cpu": busy,
        "to_disk": durations,
        "slowest_step_behind": slowest,
        "slowest_step_before": calm,
    }
    return {f"{name}_ms": round(1e3 * statistics.median(values), 1) for name, values in named.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder on the disk to write to")
    parser.add_argument("--megabytes", type=float, default=150.0, help="size of the checkpoint")
    parser.add_argument("--saves", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps before and behind each save")
    given = parser.parse_args()
    found = {}
    for background in (False, True):
        folder = given.out / ("background" if background else "at_once")
        folder.mkdir(parents=True, exist_ok=True)
        found[folder.name] = measure(background, folder, given.megabytes, given.saves, given.steps)
        shutil.rmtree(folder)
    ratios = {
        f"{name}_ratio": round(found["at_once"][f"{name}_ms"] / found["background"][f"{name}_ms"], 1)
        for name in ("stall", "stall_cpu")
    }
    print(json.dumps({**found, "megabytes": given.megabytes, **ratios}, indent=2))


if __name__ == "__main__":
    main()
