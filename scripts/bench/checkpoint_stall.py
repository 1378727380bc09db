"""How long training stands still for a checkpoint that is written at once, and for one written in the background.

  python -m scripts.bench.checkpoint_stall --out /tmp/stall [--megabytes 150] [--saves 7]
  python -m scripts.bench.checkpoint_stall --out /tmp/stall --zero 2      folders of two ranks under ZeRO-2

A state of weights and AdamW's two moments is saved through what ``longvid fit`` saves with, to the folder's disk, with
optimiser steps before and behind each save. The stall is the time that the call takes: at once, all of the writing; in
the background, the copy in the host's memory; ``stall_cpu`` is the training thread's own share of it, which other jobs
of the machine do not lengthen (nor does it count the disk). Each state reaches the disk before the next is saved. The
slowest step behind a save shows what the writer takes from the training it runs beside. Of two ranks, rank 0's times
are told.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from longvid_train.training.checkpoint_folder import save_engine
from longvid_train.training.checkpoint_io import AtomicCheckpointIO, remove_checkpoint
from longvid_train.training.save_queue import SaveQueue

WIDTH = 1024
FLOAT_BYTES = 4
COPIES = 3
"""Weights and two moments."""
RANKS = 2


class Training(Protocol):
    """Something that takes steps and saves its state."""

    queue: SaveQueue

    def step(self, batch: torch.Tensor) -> None:
        """Take an optimiser step."""

    def save(self, path: Path, number: int) -> None:
        """Save, at once or in the background."""


class PlainTraining:
    """One process, whose checkpoints are files."""

    def __init__(self, megabytes: float, *, background: bool) -> None:
        self.model, self.optimizer = build(megabytes)
        self.writer = AtomicCheckpointIO()
        self.queue = self.writer.queue
        self.queue.background = background

    def step(self, batch: torch.Tensor) -> None:
        """Take an optimiser step."""
        self.model(batch).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, path: Path, number: int) -> None:
        """Save a file."""
        state = {"state_dict": self.model.state_dict(), "optimizer_states": [self.optimizer.state_dict()]}
        self.writer.save_checkpoint({**state, "global_step": number}, path)


class ZeroTraining:
    """A rank of two under ZeRO, whose checkpoints are folders."""

    def __init__(self, megabytes: float, *, background: bool, stage: int) -> None:
        import deepspeed

        from longvid_train.training.strategies.zero_config import zero_config

        model, optimizer = build(megabytes)
        elements = 50_000_000
        config = zero_config(stage, "none", bucket_elements=elements, prefetch_elements=elements)  # type: ignore[arg-type]
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.stage = stage
        self.queue = SaveQueue(background=background)
        self.writers = torch.distributed.new_group(backend="gloo") if background else None

    def step(self, batch: torch.Tensor) -> None:
        """Take an optimiser step."""
        self.engine.backward(self.engine(batch).square().mean())
        self.engine.step()

    def save(self, path: Path, number: int) -> None:
        """Save a folder."""
        options: dict[str, Any] = {"start": 1, "stage": self.stage, "split": None}
        save_engine(self.engine, {"global_step": number}, path, queue=self.queue, writers=self.writers, **options)


def build(megabytes: float) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model whose checkpoint has about that size."""
    torch.manual_seed(0)
    layers = max(1, round(megabytes * 1e6 / (COPIES * FLOAT_BYTES * WIDTH * WIDTH)))
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)])
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4)


@dataclass(frozen=True)
class Timing:
    """What one `save` took, in seconds."""

    stall: float
    stall_cpu: float
    to_disk: float
    slowest_step_behind: float
    slowest_step_before: float


def time_save(training: Training, batch: torch.Tensor, path: Path, number: int, steps: int) -> Timing:
    """Steps, a save, steps beside its writing, and the wait for it."""
    before_s = max(timed_step(training, batch) for _ in range(steps))
    began_s, began_cpu_s = time.perf_counter(), time.thread_time()
    training.save(path, number)
    busy_s, stall_s = time.thread_time() - began_cpu_s, time.perf_counter() - began_s
    behind_s = max(timed_step(training, batch) for _ in range(steps))
    training.queue.wait()
    return Timing(stall_s, busy_s, time.perf_counter() - began_s, behind_s, before_s)


def timed_step(training: Training, batch: torch.Tensor) -> float:
    """Seconds of an optimiser step."""
    began_s = time.perf_counter()
    training.step(batch)
    return time.perf_counter() - began_s


def measure(training: Training, out: Path, saves: int, steps: int, *, removes: bool = True) -> dict[str, float]:
    """Medians over ``saves``, in ms.

    Args:
        training: what is saved.
        out: folder of the checkpoints.
        saves: how many.
        steps: optimiser steps before and behind each.
        removes: whether this process removes each checkpoint when it has been timed.
    """
    batch = torch.randn(64, WIDTH)
    training.step(batch)
    timings = []
    for number in range(saves):
        path = out / f"{number}.ckpt"
        timings.append(time_save(training, batch, path, number, steps))
        if removes:
            remove_checkpoint(path)
    names = Timing.__dataclass_fields__
    return {f"{name}_ms": round(1e3 * statistics.median(getattr(one, name) for one in timings), 1) for name in names}


def measure_rank(rank: int, background: bool, store: str, out: Path, given: argparse.Namespace, told: Any) -> None:
    """Be one of the two ranks; rank 0 puts its medians into ``told``."""
    import deepspeed

    from longvid_train.training.strategies.zero import use_cpu

    use_cpu()
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    deepspeed.init_distributed("gloo", dist_init_required=False)
    training = ZeroTraining(given.megabytes, background=background, stage=given.zero)
    found = measure(training, out, given.saves, given.steps, removes=rank == 0)
    if rank == 0:
        told.put(found)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measure_ranks(background: bool, out: Path, given: argparse.Namespace) -> dict[str, float]:
    """`measure` of two ranks under ZeRO.

    Raises:
        SystemExit: a rank failed.
    """
    spawn = multiprocessing.get_context("spawn")
    told = spawn.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        words = (background, f"{folder}/store", out, given, told)
        ranks = [spawn.Process(target=measure_rank, args=(rank, *words)) for rank in range(RANKS)]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join()
    if any(one.exitcode for one in ranks):
        raise SystemExit("a rank failed; its traceback is above")
    found: dict[str, float] = told.get()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder on the disk to write to")
    parser.add_argument("--megabytes", type=float, default=150.0, help="size of the checkpoint")
    parser.add_argument("--saves", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps before and behind each save")
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), help="save folders of two ranks under this stage")
    given = parser.parse_args()
    found = {}
    for background in (False, True):
        folder = given.out / ("background" if background else "at_once")
        folder.mkdir(parents=True, exist_ok=True)
        if given.zero is None:
            plain = PlainTraining(given.megabytes, background=background)
            found[folder.name] = measure(plain, folder, given.saves, given.steps)
        else:
            found[folder.name] = measure_ranks(background, folder, given)
        shutil.rmtree(folder)
    ratios = {
        f"{name}_ratio": round(found["at_once"][f"{name}_ms"] / found["background"][f"{name}_ms"], 1)
        for name in ("stall", "stall_cpu")
    }
    print(json.dumps({**found, "megabytes": given.megabytes, "zero": given.zero, **ratios}, indent=2))


if __name__ == "__main__":
    main()
