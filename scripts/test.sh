#!/usr/bin/env bash
# Set up and run the tests: style, types, import arrows, units, integration through the command line.
#   bash scripts/test.sh            the fast tests (what CI runs)
#   bash scripts/test.sh --slow     the slow ones: they train the nano stages and check what each one gains
#   bash scripts/test.sh tests/video -k rotated     any pytest arguments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

# Two test processes with one thread each: torch's own threads would fight over the cores.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=offline HF_HUB_OFFLINE=1
workers=$(.venv/bin/python -c 'import os; print(max(1, min(8, os.cpu_count() or 1)))')
if [[ ${1:-} == --slow ]]; then
    shift
    unset OMP_NUM_THREADS MKL_NUM_THREADS
    exec .venv/bin/python -m pytest -m slow --timeout 3600 "$@"
fi
exec .venv/bin/python -m pytest --numprocesses "$workers" --dist loadscope "$@"
