"""The folder beside ``--out`` in which a calibration keeps what a killed run goes on from, and why it was refused."""

import json
import shutil
from pathlib import Path
from typing import Any

from longvid_train.errors import UserError
from longvid_train.files import write_json

SETTINGS_FILE = "settings.json"
REPORT_FILE = "report.json"


def run_folder(out: Path) -> Path:
    """``<out>.calibration``."""
    return out.with_name(f"{out.name}.calibration")


def check_out(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        UserError: ``out`` is a file or a folder with files.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder; name a new one")


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or find that its statistics are of the same settings.

    Raises:
        UserError: they are of others; the first is named with both values. Or the folder cannot be written.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        try:
            write_json(path, settings)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}); name another --out") from error
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); delete {folder} to start again") from error
    for name in sorted({*before, *settings}):
        if before.get(name) != settings.get(name):
            raise UserError(
                f"{folder} holds statistics of another calibration: {name} was {_short(before.get(name))} and is now "
                f"{_short(settings.get(name))}; name another --out, or delete that folder to start again"
            )


def end(folder: Path) -> None:
    """Remove the folder of a calibration whose quantizer is written."""
    shutil.rmtree(folder)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
