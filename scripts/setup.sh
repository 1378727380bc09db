#!/usr/bin/env bash
# Create .venv with everything the project needs, as pinned in constraints.txt. Does nothing when it is up to date.
#   PYTHON=python3.12 bash scripts/setup.sh     uses that interpreter (3.11 to 3.13)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
"$python" - <<'CHECK'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"setup: Python {sys.version.split()[0]} found; longvid-train needs 3.11 to 3.13 (set PYTHON=python3.12)")
CHECK

stamp=.venv/.installed
want=$(cat pyproject.toml constraints.txt | sha256sum)
if [[ -f $stamp && $(cat "$stamp") == "$want" ]]; then
    exit 0
fi

echo "setup: installing into .venv (a few minutes the first time)" >&2
start=$SECONDS
[[ -x .venv/bin/python ]] || "$python" -m venv .venv
# torch first: a package that depends on it would otherwise bring a CUDA build of several gigabytes.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools wheel torch
# deepspeed compiles nothing at install time with this.
DS_BUILD_OPS=0 .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
echo "$want" > "$stamp"
echo "setup: done in $((SECONDS - start)) s" >&2
