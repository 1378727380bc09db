"""``longvid``: argument parsing only. Each command lives in ``longvid_train.commands``, imported when it is called."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from longvid_train import __version__
from longvid_train.console import EXIT_USER_ERROR, OneLineParser, exit_status
from longvid_train.errors import UserError, nearest


@dataclass(frozen=True)
class Command:
    """A subcommand: the module that runs it, the line ``longvid --help`` shows, and who parses its words.

    A module that parses them itself is called as ``run(name, words)``; of another, ``add_arguments`` declares them.
    """

    module: str
    summary: str
    parses_itself: bool = False


COMMANDS = {
    "fit": Command("lightning", "train a stage from a config (LightningCLI)", parses_itself=True),
    "validate": Command("lightning", "run the held-out set of a config (LightningCLI)", parses_itself=True),
    "test": Command("lightning", "run the test set of a config (LightningCLI)", parses_itself=True),
    "predict": Command("lightning", "run prediction of a config (LightningCLI)", parses_itself=True),
    "init": Command("init", "assemble an untrained LLaMA-VID from pretrained parts"),
    "convert": Command("convert", "convert public LLaMA-VID weights"),
    "merge": Command("merge", "merge a LoRA adapter into its base model"),
    "frames": Command("frames", "write the frames the model would see as PNGs"),
    "ask": Command("ask", "ask a question about a video or an image"),
    "cost": Command("cost", "plan memory, operations and time of a job before it runs"),
    "calibrate": Command("calibrate", "fit a KV-cache quantizer to a calibration set and judge it", parses_itself=True),
    "export-kv-scales": Command("export_kv_scales", "write a model folder for vLLM with a calibrated fp8 KV cache"),
    "world": Command("world", "render synthetic episodes with known answers"),
    "evaluate": Command("evaluate", "answer and score evaluation manifests with any model"),
    "reproduce": Command("reproduce", "check the papers' claims on nano models and held-out episodes"),
    "ablate": Command("ablate", "run a grid of runs offline: one table, a plot, wandb runs"),
    "report": Command("report", "write the HTML report of a three-stage run"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for a user's mistake, 1 for a failure."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    return exit_status("longvid", arguments, _dispatch)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else EXIT_USER_ERROR
    if words[0] == "--version":
        print(f"longvid-train {__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise UserError(
            f"'{name}' is not a command{nearest(name, list(COMMANDS)) or '.'} Run 'longvid --help' for the list."
        )
    module = importlib.import_module(f"longvid_train.commands.{COMMANDS[name].module}")
    if COMMANDS[name].parses_itself:
        return int(module.run(name, rest))
    parser = OneLineParser(
        prog=f"longvid {name}",
        description=module.__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return int(module.run(parser.parse_intermixed_args(rest)))


def _usage() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: longvid COMMAND [ARGUMENTS] [--debug]", "", *lines, "", "longvid COMMAND --help shows an example."]
    )


if __name__ == "__main__":
    sys.exit(main())
