"""The shell scripts parse, are executable, and refer only to files that exist."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "scripts").rglob("*.sh"), ROOT / ".ci" / "run"])


def test_the_scripts_are_found() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"setup.sh", "test.sh", "quickstart.sh", "pretrain_nano_parts.sh", "run"} <= names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_names_existing_files(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    for name in re.findall(r"(?<![\w./])(?:configs|scripts)/[\w./-]+\.(?:yaml|sh|py)", text):
        assert (ROOT / name).is_file(), f"{script.name} names {name}, which does not exist"


def test_constraints_pin_torch_first() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert pins[0] == "torch==2.13.0"
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^\s]+", pin) for pin in pins)
    assert len({pin.partition("==")[0].lower() for pin in pins}) == len(pins)
