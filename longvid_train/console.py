"""What every command line of the project shares: mistakes are one line on stderr, and exit statuses mean the same."""

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from longvid_train.errors import UserError, nearest

Parsed = TypeVar("Parsed")

EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
_WRONG_PLACE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
)
"""What the operating system answers when a file or folder that the user named cannot be used."""


class OneLineParser(argparse.ArgumentParser):
    """Reports a mistake as one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` with the argument, and for an unknown option the nearest valid one."""
        unknown = next((word for word in message.split() if word.startswith("--")), None)
        if unknown is not None and message.startswith("unrecognized arguments"):
            message += nearest(unknown.partition("=")[0], list(self._option_string_actions))
        raise UserError(f"{message} ('{self.prog} --help' lists the arguments)")


def argument(parse: Callable[[str], Parsed]) -> Callable[[str], Parsed]:
    """Let argparse show the message of a `UserError` that ``parse`` raises, rather than one of its own."""

    def parse_argument(text: str) -> Parsed:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument


def say(line: str) -> None:
    """Print a line for the user on stderr, at once."""
    print(f"longvid: {line}", file=sys.stderr, flush=True)


def exit_status(program: str, words: Sequence[str] | None, body: Callable[[list[str]], int]) -> int:
    """Run ``body`` with the arguments and return the exit status: its own, 2 for a user's mistake, 1 for a failure.

    Args:
        program: stands in front of messages.
        words: the arguments; None: the process's. ``--debug`` among them is taken out and shows tracebacks.
        body: called with the other arguments.
    """
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    try:
        return body([word for word in words if word != "--debug"])
    except BrokenPipeError:
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        what, status = describe(error)
        hint = " (run again with --debug for the traceback)" if status == EXIT_FAILURE else ""
        print(f"{program}: {what}{hint}", file=sys.stderr)
        return status


def describe(error: BaseException) -> tuple[str, int]:
    """What a command says of ``error`` in one line, and the exit status: 2 for a user's mistake, 1 for a failure."""
    if isinstance(error, UserError):
        return _on_one_line(error), EXIT_USER_ERROR
    if isinstance(error, OSError) and error.errno in _WRONG_PLACE and error.filename is not None:
        return f"{error.filename}: {error.strerror}; name another file or folder", EXIT_USER_ERROR
    return f"{type(error).__name__}: {_on_one_line(error)}", EXIT_FAILURE


def _on_one_line(error: BaseException) -> str:
    """The message without line breaks, which names of files may hold."""
    return " ".join(str(error).splitlines())
