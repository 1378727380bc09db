"""``longvid``: argument parsing only. Each command lives in ``longvid_train.commands``, imported when it is called."""

import argparse
import errno
import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from longvid_train import __version__
from longvid_train.errors import UserError, nearest

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
_WRONG_PLACE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
)
"""What the operating system answers when a file or folder that the user named cannot be used."""


@dataclass(frozen=True)
class Command:
    """A subcommand: the module that runs it and the line ``longvid --help`` shows."""

    module: str
    summary: str


COMMANDS = {
    "fit": Command("lightning", "train a stage from a config (LightningCLI)"),
    "validate": Command("lightning", "run the held-out set of a config (LightningCLI)"),
    "test": Command("lightning", "run the test set of a config (LightningCLI)"),
    "predict": Command("lightning", "run prediction of a config (LightningCLI)"),
    "init": Command("init", "assemble an untrained LLaMA-VID from pretrained parts"),
    "convert": Command("convert", "convert public LLaMA-VID weights"),
    "merge": Command("merge", "merge a LoRA adapter into its base model"),
    "frames": Command("frames", "write the frames the model would see as PNGs"),
    "ask": Command("ask", "ask a question about a video or an image"),
    "world": Command("world", "render synthetic episodes with known answers"),
    "report": Command("report", "write the HTML report of a three-stage run"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for a user's mistake, 1 for a failure."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    try:
        return _dispatch(words)
    except UserError as error:
        if debug:
            raise
        print(f"longvid: {_on_one_line(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print("longvid: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno in _WRONG_PLACE and error.filename is not None:
            print(f"longvid: {error.filename}: {error.strerror}; name another file or folder", file=sys.stderr)
            return EXIT_USER_ERROR
        what = f"{type(error).__name__}: {_on_one_line(error)}"
        print(f"longvid: {what} (run again with --debug for the traceback)", file=sys.stderr)
        return EXIT_FAILURE


def _on_one_line(error: Exception) -> str:
    """The message without line breaks, which names of files may hold."""
    return " ".join(str(error).splitlines())


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` with the argument, and for an unknown option the nearest valid one."""
        unknown = next((word for word in message.split() if word.startswith("--")), None)
        if unknown is not None and message.startswith("unrecognized arguments"):
            message += nearest(unknown.partition("=")[0], list(self._option_string_actions))
        raise UserError(f"{message} ('{self.prog} --help' lists the arguments)")


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
    if COMMANDS[name].module == "lightning":
        return int(module.run(name, rest))
    parser = _Parser(
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
