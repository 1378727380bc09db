"""Style, types and import arrows are tests like any other: one command says whether all is well."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "check", "."], id="ruff-check"),
        pytest.param(["ruff", "format", "--check", "."], id="ruff-format"),
        pytest.param(["mypy"], id="mypy-strict"),
        pytest.param(["lint-imports"], id="import-arrows"),
    ],
)
def test_static_check_passes(command: list[str]) -> None:
    executable = BIN / command[0]
    done = subprocess.run([executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_is_held_by_the_import_contract() -> None:
    """A new room must be placed in the layers: `exhaustive` only speaks when the contract names the container."""
    import tomllib

    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    placed = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    rooms = {
        path.stem
        for path in (ROOT / "longvid_train").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.stem.startswith("_")
    }
    assert contract["exhaustive"] and rooms == placed
