"""Options for the ceilings on what a video file may cost, shared by all commands that decode files.

They are named as in the config of a run: ``--limits.max_frames`` here is ``data.media.limits.max_frames`` there.
"""

import argparse
from dataclasses import fields

from longvid_train.errors import UserError
from longvid_train.video.limits import DecodeLimits

_PREFIX = "limits."
_HELP = {
    "max_file_bytes": "size of a file",
    "max_pixels_per_frame": "width x height as stored",
    "max_frames": "frames taken from a file",
    "max_duration_s": "length of a video",
    "max_output_bytes": "RGB bytes decoded at once",
    "timeout_s": "seconds the decoding process may run",
    "max_memory_bytes": "address space of the decoding process",
    "allowed_schemes": "URL schemes to open beside local files, e.g. https or http,https",
}
_OF_THE_PROCESS = ("timeout_s", "max_memory_bytes")
"""Ceilings that only a process of its own can be held to."""


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Declare one option for each field of `DecodeLimits`, and ``--no-isolate``."""
    group = parser.add_argument_group(
        "untrusted files", "ceilings on what a file may cost; raise them for files you trust"
    )
    group.add_argument("--no-isolate", action="store_true", help="decode in this process: only for files you trust")
    defaults = DecodeLimits()
    for field in fields(DecodeLimits):
        default = getattr(defaults, field.name)
        listed = isinstance(default, tuple)
        group.add_argument(
            f"--{_PREFIX}{field.name}",
            type=_words if listed else type(default),
            default=argparse.SUPPRESS,
            metavar="A,B" if listed else "N",
            help=f"{_HELP[field.name]} ({'none' if listed else f'{default:.12g}'})",
        )


def limits_of(arguments: argparse.Namespace) -> DecodeLimits:
    """The ceilings that the arguments ask for.

    Raises:
        UserError: a ceiling is not positive, or is one of the decoding process and ``--no-isolate`` says that there is
            none.
    """
    given = {name.removeprefix(_PREFIX): value for name, value in vars(arguments).items() if name.startswith(_PREFIX)}
    for name in _OF_THE_PROCESS:
        if name in given and arguments.no_isolate:
            raise UserError(f"--{_PREFIX}{name} has no effect with --no-isolate; leave one of them out")
    return DecodeLimits(**given)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
