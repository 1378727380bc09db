"""Twenty random kills of a rank: what `scripts/random_kills.py` proves, as a test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("strategy", "more"),
    [("ddp", []), ("ddp", ["--asynchronous"]), ("zero2", ["--asynchronous"])],
    ids=["ddp", "ddp in the background", "zero2 in the background"],
)
def test_twenty_random_kills_change_no_bit(strategy: str, more: list[str], tmp_path: Path) -> None:
    """The script compares every micro-batch, the loss curve and the exported weights with an undisturbed run's."""
    words = ["-m", "scripts.random_kills", "--out", str(tmp_path), "--strategy", strategy, *more]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert f"{strategy}, 20 kills, seed 0: the same bits" in done.stdout.splitlines()
