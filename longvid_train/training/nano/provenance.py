"""The record beside every shipped nano part: how it was made."""

import csv
import hashlib
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from longvid_train import world
from longvid_train.files import sha256_file, write_json

RECORD = "provenance.json"


def code_version() -> dict[str, str]:
    """Commit, and one hash over the code that generates the data: the data are a pure function of it and the seed.

    Taken when the command starts: that is the code it runs, whatever the working tree becomes meanwhile.
    """
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    files = sorted(Path(world.__path__[0]).glob("*.py"))
    digest = hashlib.sha256("".join(sha256_file(file) for file in files).encode()).hexdigest()
    return {"commit": commit, "data_hash": digest}


def write_record(
    folder: Path,
    *,
    module: str,
    recipe: dict[str, Any],
    seconds: float,
    metrics: Path,
    code: dict[str, str],
    **more: Any,
) -> None:
    """Write ``provenance.json``: seed, command, commit, hash of the generating code, versions and the last metrics.

    Args:
        folder: of the part.
        module: that was run.
        recipe: with its seed.
        seconds: of training.
        metrics: the run's ``metrics.csv``.
        code: from `code_version`.
        **more: further entries.
    """
    write_json(
        folder / RECORD,
        {
            **code,
            **more,
            "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
            "data": "episodes of longvid_train.world, split 'train', drawn from the seed",
            "device": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "final_metrics": last_metrics(metrics),
            "recipe": recipe,
            "seconds": round(seconds, 1),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        },
    )


def last_metrics(path: Path) -> dict[str, float]:
    """The mean of the last eight logged rows of each metric."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))[-8:]
    columns = [name for name in rows[0] if name not in ("epoch", "step")]
    values = {name: [float(row[name]) for row in rows if row[name]] for name in columns}
    return {name: round(sum(found) / len(found), 4) for name, found in values.items() if found}
