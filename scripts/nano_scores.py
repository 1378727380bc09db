"""How well each shipped nano model solves the windows it was trained on: exact answers about unseen clips.

    python -m scripts.nano_scores                       # the table of docs/nano.md: 400 clips a window, some 10 minutes
    python -m scripts.nano_scores nano_onevision --clips 100 --models runs/assets

Clips are of split ``test``, which no training draws from, and of a seed that no claim uses; one question of each kind
about each, answered greedily. The table on stdout is Markdown, with bootstrap intervals of 95 %.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from longvid_train.commands.reproduce import ASSETS
from longvid_train.console import OneLineParser, argument, exit_status, say
from longvid_train.errors import UserError
from longvid_train.evaluation.claims.answering import NEW_TOKENS, Answered, scored
from longvid_train.evaluation.claims.asking import ask_encoded, encoded_clips
from longvid_train.evaluation.claims.held_out import KINDS as UNCOUNTED
from longvid_train.evaluation.claims.held_out import HeldOut, held_out_clips
from longvid_train.evaluation.claims.llama_vid_long import ADAPTATION, KINDS
from longvid_train.evaluation.statistics import bootstrap_mean
from longvid_train.generate.chat import VideoChat
from longvid_train.world.plan import world_settings
from longvid_train.world.settings import SetSettings

SEED = 1000
CLIPS = 400
AT_ONCE = 25
"""Clips that are rendered, encoded and asked together: bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a model was trained on: the length of its videos, their frames and objects, and the kinds of questions."""

    duration_s: float
    frames: int
    kinds: tuple[str, ...]
    most_objects: int = SetSettings.most_objects

    @property
    def gap_s(self) -> tuple[float, float]:
        """The pauses between objects that a world of such videos has."""
        world = SetSettings(videos={"test": 1}, most_objects=self.most_objects)
        return world_settings(world, self.duration_s).gap_s


_SHORT = Window(duration_s=8.0, frames=8, kinds=KINDS)
WINDOWS = {
    "nano_onevision": (Window(duration_s=8.0, frames=8, kinds=UNCOUNTED),),
    "nano_video_llava": (Window(duration_s=8.0, frames=8, kinds=UNCOUNTED),),
    "nano_llama_vid_stage2": (_SHORT,),
    "nano_llama_vid": (_SHORT, Window(duration_s=135.0, frames=135, kinds=KINDS, most_objects=8)),
}
"""By folder of the model: those of its last stage and of the one before, where it was trained on both."""


def window_clips(window: Window, clips: int, seed: int) -> tuple[HeldOut, ...]:
    """Unseen clips of a window, with one question of each kind."""
    return held_out_clips(
        episodes=clips,
        duration_s=window.duration_s,
        frames=window.frames,
        seed=seed,
        seen_only=True,
        gap_s=window.gap_s,
        kinds=window.kinds,
    )


def answers_in_window(folder: Path, window: Window, clips: int, seed: int) -> list[Answered]:
    """Answers of a model to every question about the clips of its window."""
    chat = VideoChat.load(folder, adaptation=ADAPTATION, device="cpu", dtype="float32")
    held_out = window_clips(window, clips, seed)
    answered = []
    for first in range(0, clips, AT_ONCE):
        part = held_out[first : first + AT_ONCE]
        asked = ask_encoded(chat, part, encoded_clips(chat, part), new_tokens=NEW_TOKENS)
        answered += [scored(one, question, answer.answer) for one, question, answer, _ in asked]
        say(f"{folder.name}: {first + len(part)} of {clips} clips")
    return answered


def scores_row(name: str, window: Window, answered: Sequence[Answered]) -> str:
    """A row of the table: the share of right answers of each kind, with its interval."""
    cells = []
    for kind in KINDS:
        values = [one.score for one in answered if one.kind == kind]
        found = bootstrap_mean(values) if values else None
        cells.append("" if found is None else f"{found.mean:.3f} ({found.low:.2f} to {found.high:.2f})")
    return f"| `{name}` | {window.duration_s:g} s, {window.frames} frames | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Print the table of the models that the command line names."""
    return exit_status("nano_scores", arguments, _run)


def _run(words: list[str]) -> int:
    parser = OneLineParser(
        prog="nano_scores", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of {', '.join(WINDOWS)} (default: all)")
    parser.add_argument("--models", type=Path, default=ASSETS, help="folder of the nano models (the package's)")
    parser.add_argument("--clips", type=argument(partial(_at_least, "clips", 1)), default=CLIPS, help="of each model")
    parser.add_argument("--seed", type=argument(partial(_at_least, "seed", 0)), default=SEED, help="of the clips")
    given = parser.parse_args(words)
    for name in given.names:
        if name not in WINDOWS:
            raise UserError(f"model '{name}' is unknown; known are {', '.join(WINDOWS)}")
    print(f"| {given.clips} unseen clips each | window | {' | '.join(KINDS)} |\n|{'---|' * (2 + len(KINDS))}")
    for name in given.names or WINDOWS:
        for window in WINDOWS[name]:
            row = scores_row(name, window, answers_in_window(given.models / name, window, given.clips, given.seed))
            print(row, flush=True)
    return 0


def _at_least(name: str, least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"--{name} is '{text}'; it must be a whole number of at least {least}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
