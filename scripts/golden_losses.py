"""Compare the first losses of the three nano stages with kept ones; a change that moves training shows here.

    python -m scripts.golden_losses                 # compare; exit status 1 and a table when a loss moved
    python -m scripts.golden_losses --update        # rewrite scripts/golden_losses.json

A tiny world is rendered, ``longvid init`` assembles the untrained model from the shipped parts, and every stage of
``configs/llama_vid/nano`` trains ``STEPS`` optimiser steps from that model with the config's own seed, stage, template,
rates and schedule; only paths, lengths of the run and batch sizes are set here (``overrides``). Stages start
from the same model, so one that moved does not move the next.

The losses are those of one thread in float32. Another processor, BLAS or FFmpeg rounds differently: a loss may move by
``RELATIVE_TOLERANCE`` of its value. On one machine two runs give the same bits.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from longvid_train import cli
from longvid_train.files import write_json
from longvid_train.training.record import package_versions
from longvid_train.training.tracking import read_metrics

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).with_suffix(".json")
STAGES = ("stage1", "stage2", "stage3")
STEPS = 12
BATCH_SIZE = 4
RELATIVE_TOLERANCE = 2e-3
NUMBERS = ("train/loss", "train/grad_norm")

WORLD: dict[str, Any] = {
    "seed": 11,
    "defaults": {"fps": 2, "size_px": 112},
    "sets": [
        {"name": "stage1", "videos": {"train": 8}, "images": {"train": 8}, "duration_s": [3, 4], "style": "caption"},
        {"name": "stage2", "videos": {"train": 8}, "texts": {"train": 4}, "duration_s": [4, 6], "multi_turn": True},
        {"name": "stage3", "videos": {"train": 4}, "duration_s": [20, 24], "subtitles": True, "fps": 1},
    ],
}


@dataclass(frozen=True)
class Moved:
    """A number that left its tolerance."""

    stage: str
    step: int
    name: str
    kept: float
    found: float


class StopAfter(Callback):
    """End a run early without shortening its schedule."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop once so many optimiser steps are done."""
        trainer.should_stop = trainer.global_step >= self.steps


def prepare(folder: Path) -> None:
    """Render the world and assemble the untrained model."""
    config = folder / "world.yaml"
    write_json(config, WORLD)
    _run("world", "--config", str(config), "--out", str(folder / "world"), "--json")
    _run("init", "--out", str(folder / "start"), "--seed", "0")


def overrides(folder: Path, stage: str, steps: int) -> list[str]:
    """Options that move a stage's config onto the tiny world."""
    stop = {"class_path": "scripts.golden_losses.StopAfter", "init_args": {"steps": steps}}
    values = {
        "run_dir": folder / stage,
        "wandb": "off",
        "model.model": folder / "start",
        "model.torch_threads": 1,
        "data.train": folder / "world" / stage / "train" / "manifest.jsonl",
        "data.test": "null",
        "data.loading.batch_size": BATCH_SIZE,
        "trainer.max_epochs": STEPS,
        "trainer.max_steps": STEPS,
        "trainer.callbacks": json.dumps([stop]),
        "answers.enabled": "false",
        "checkpoint.save_last": "false",
        "checkpoint.save_top_k": 0,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def measure(folder: Path, steps: int = STEPS) -> dict[str, dict[str, list[float]]]:
    """Train ``steps`` steps of every stage; return the ``NUMBERS`` of each step."""
    prepare(folder)
    threads = torch.get_num_threads()
    found = {}
    for stage in STAGES:
        config = ROOT / "configs" / "llama_vid" / "nano" / f"{stage}.yaml"
        _run("fit", "--config", str(config), *overrides(folder, stage, steps))
        lines = [line for line in read_metrics(folder / stage) if "train/loss" in line]
        found[stage] = {name: [float(line[name]) for line in lines] for name in NUMBERS}
    torch.set_num_threads(threads)
    return found


def compare(
    kept: dict[str, dict[str, list[float]]], found: dict[str, dict[str, list[float]]], tolerance: float
) -> list[Moved]:
    """Numbers of ``found`` that differ from those kept by more than ``tolerance`` of the kept value.

    ``found`` may hold fewer steps than were kept, not more.
    """
    return [
        Moved(stage, step, name, before, now)
        for stage, numbers in found.items()
        for name, values in numbers.items()
        for step, (before, now) in enumerate(zip(kept[stage][name][: len(values)], values, strict=True))
        if not math.isclose(now, before, rel_tol=tolerance, abs_tol=0.0)
    ]


def largest_difference(kept: dict[str, dict[str, list[float]]], found: dict[str, dict[str, list[float]]]) -> float:
    """The largest relative difference of any number."""
    return max(
        abs(now - before) / abs(before)
        for stage, numbers in found.items()
        for name, values in numbers.items()
        for before, now in zip(kept[stage][name], values, strict=False)
    )


def main() -> int:
    """Compare or update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help=f"rewrite {GOLDEN.name}")
    parser.add_argument("--tolerance", type=float, default=RELATIVE_TOLERANCE, help="relative (2e-3); 0 asks for bits")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    if arguments.update:
        write_json(GOLDEN, {"versions": package_versions(), "steps": STEPS, "stages": found})
        print(f"{GOLDEN}: written")
        return 0
    kept = json.loads(GOLDEN.read_text(encoding="utf-8"))["stages"]
    moved = compare(kept, found, arguments.tolerance)
    for number in moved:
        print(f"{number.stage} step {number.step} {number.name}: kept {number.kept:.6f}, now {number.found:.6f}")
    print(
        f"{len(moved)} numbers moved by more than {arguments.tolerance:g}; "
        f"the largest difference is {largest_difference(kept, found):.2g}"
    )
    return 1 if moved else 0


def _run(*words: str) -> None:
    if cli.main(list(words)) != 0:
        raise RuntimeError(f"longvid {' '.join(words)} failed")


if __name__ == "__main__":
    sys.exit(main())
