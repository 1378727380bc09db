"""What ran: the resolved config and the facts of each start of a run, written to its folder before training."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import SaveConfigCallback

from longvid_train.data.features.index import INDEX_FILE
from longvid_train.files import sha256_file, write_json, write_text

RECORD_FILE = "run.json"
CONFIG_FILE = "config.yaml"
_PACKAGES = (
    "longvid-train",
    "torch",
    "transformers",
    "pytorch-lightning",
    "jsonargparse",
    "peft",
    "deepspeed",
    "numpy",
    "av",
    "decord",
    "wandb",
)


class RunRecord(SaveConfigCallback):
    """Write ``config.yaml`` (resolved, usable with ``--config`` again) and append this start to ``run.json`` in the run
    folder.

    ``run.json`` is ``{"starts": [...]}``: a resumed run adds a start and keeps the earlier ones. A start that reached
    its last step, answers and export included, has ``finished_at`` and ``duration_s``. ``config.yaml`` names no
    checkpoint to continue from, also after a resumption: it is the whole run.
    """

    def __init__(self, *args: Any, command_line: list[str], **kwargs: Any) -> None:
        super().__init__(*args, save_to_log_dir=False, **kwargs)
        self.command_line = command_line
        self._started_s = 0.0

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write both files (Lightning calls this on rank 0 only). Only ``fit`` writes: the others leave the record
        alone."""
        if stage != "fit":
            return
        run_dir = Path(trainer.default_root_dir)
        started_at, self._started_s = now(), time.monotonic()
        whole = self.config.clone()
        whole["ckpt_path"] = None
        write_text(run_dir / CONFIG_FILE, self.parser.dump(whole, skip_none=False, skip_link_targets=True))
        starts = json.loads((run_dir / RECORD_FILE).read_text())["starts"] if (run_dir / RECORD_FILE).exists() else []
        settings = self.config.as_dict()
        start = {
            "started_at": started_at,
            "command": shlex.join(self.command_line),
            "working_folder": str(Path.cwd()),
            "seed": settings.get("seed_everything"),
            "git_commit": git_commit(Path.cwd()),
            "manifest_sha256": manifest_hashes(settings),
            "features_index_sha256": features_hash(settings),
            "versions": package_versions(),
            "hardware": hardware(),
            "world_size": trainer.world_size,
        }
        write_json(run_dir / RECORD_FILE, {"starts": [*starts, start]})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note when the run ended. Lightning calls it behind the export and the answers, and not after a failure."""
        if trainer.is_global_zero:
            duration_s = round(time.monotonic() - self._started_s, 3)
            add_to_last_start(Path(trainer.default_root_dir), {"finished_at": now(), "duration_s": duration_s})


def add_to_last_start(run_dir: Path, facts: dict[str, Any]) -> None:
    """Add facts that are known only once training starts to the last start of ``run.json``; without the file (a trainer
    that the command line did not build) do nothing."""
    path = run_dir / RECORD_FILE
    if path.exists():
        *earlier, last = json.loads(path.read_text(encoding="utf-8"))["starts"]
        write_json(path, {"starts": [*earlier, {**last, **facts}]})


def manifest_hashes(settings: Any) -> dict[str, str]:
    """SHA-256 of every existing ``.jsonl`` file that the settings name, by its name as written there."""
    if isinstance(settings, dict):
        return {path: digest for value in settings.values() for path, digest in manifest_hashes(value).items()}
    if isinstance(settings, (list, tuple)):
        return {path: digest for value in settings for path, digest in manifest_hashes(value).items()}
    if isinstance(settings, (str, os.PathLike)) and Path(settings).suffix == ".jsonl" and Path(settings).is_file():
        return {str(settings): sha256_file(Path(settings))}
    return {}


def features_hash(settings: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the index of the features that the run reads (``data.media.features``), by the folder as written.

    The index names every shard by the hash of its header, which holds its frames' checksums. Empty for a run that
    decodes.
    """
    media = settings.get("data", {}).get("init_args", {}).get("media") or {}
    folder = media.get("features")
    return {} if folder is None else {str(folder): sha256_file(Path(folder) / INDEX_FILE)}


def git_commit(folder: Path) -> str | None:
    """Return the commit checked out in ``folder``, with ``-dirty`` if tracked files differ; ``None`` outside git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def package_versions() -> dict[str, str]:
    """Return the installed version of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """Return the processor, core and thread counts and the names of CUDA devices."""
    return {
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def now() -> str:
    """The moment, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def process_command_line() -> list[str]:
    """Return the words that started this process."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
