#!/usr/bin/env python
"""`longvid convert` as a script: public LLaMA-VID weights to a folder of this project (docs/public_checkpoints.md)."""

import sys

from longvid_train.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
