#!/usr/bin/env bash
# Pre-train the nano parts that ship under longvid_train/assets/nano: tokenizer and language model on world text, vision
# tower and Q-Former on world frames. About 45 minutes on 2 CPU cores. Each part's provenance.json records seed, command,
# commit, data hash and final metrics.
#   bash scripts/pretrain_nano_parts.sh [OUT]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
out=${1:-longvid_train/assets/nano}
.venv/bin/python -m longvid_train.training.nano.pretrain language --out "$out"
.venv/bin/python -m longvid_train.training.nano.pretrain lengthen --out "$out"
.venv/bin/python -m longvid_train.training.nano.pretrain vision --out "$out"
