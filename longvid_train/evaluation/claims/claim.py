"""What a claim is: what a paper says, and how it is checked here: by answers to questions, or by computing."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.evaluation.claims.cells import Grid, Scores
from longvid_train.evaluation.claims.coded import Coding
from longvid_train.evaluation.claims.held_out import KINDS, HeldOut
from longvid_train.evaluation.claims.llama_vid_answers import Compared
from longvid_train.evaluation.statistics import Interval


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the table: what the paper says, what is found here, whether it holds."""

    paper: str
    here: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found about a claim.

    Attributes:
        checks: rows of the table of all claims.
        tables: Markdown for people.
        values: everything as JSON can hold it.
        plots: PNG files by their names.
    """

    checks: tuple[Check, ...]
    tables: str
    values: dict[str, Any]
    plots: dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class ComputedClaim:
    """A claim about shapes or tensors: nothing is asked.

    Attributes:
        name: for the command line.
        title: for people, with the paper's table or figure.
        model: folder of the nano model under the package's assets; ``None`` where none is read.
        cpu_s: CPU seconds it takes, as measured on two cores of the machine in docs/LOG.md.
        find: given the folder of the model.
    """

    name: str
    title: str
    model: str | None
    cpu_s: int
    find: Callable[[Path | None], Finding]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim about answers and how it is checked.

    Attributes:
        name: for the command line.
        title: for people, with the paper's table or figure.
        model: folder of the nano model under the package's assets; ``None`` for a LLaMA-VID: the one named with
            ``--llama-vid``, else the shipped one.
        adapter: folder of a LoRA adapter beside it, whose row is run where it exists.
        videos: what is asked about, in words.
        grid: what is run.
        held_out: questions of so many episodes, at a number of frames, from a seed.
        checks: rows of the table.
        cpu_s: CPU seconds of the default episodes and seeds, as measured on two cores of the machine in docs/LOG.md.
        kinds: of the questions.
        coding: of a claim whose methods are KV caches; ``None`` where they are adaptations or models.
        compared: of a claim whose methods are models; ``None`` where one model is asked under all of them.
    """

    name: str
    title: str
    model: str | None
    adapter: str | None
    videos: str
    grid: Grid
    held_out: Callable[[int, int, int], tuple[HeldOut, ...]]
    checks: Callable[[Scores], tuple[Check, ...]]
    cpu_s: int
    kinds: tuple[str, ...] = KINDS
    coding: Coding | None = None
    compared: Compared | None = None


MARGIN = 0.05
"""Accuracy, in shares, that a claim of no difference allows for: less cannot be told at some hundred questions."""


def keeps(gain: Interval) -> bool:
    """Whether a loss of as much as `MARGIN` is excluded (non-inferiority: the whole interval lies above it)."""
    return gain.low > -MARGIN


def no_better(gain: Interval) -> bool:
    """Whether a gain of as much as `MARGIN` is excluded."""
    return gain.high < MARGIN


def percent(found: Interval) -> str:
    """``"61 % (57 to 65)"``."""
    return f"{100 * found.mean:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"


def points(gain: Interval) -> str:
    """``"+4.1 points (+1.0 to +7.2)"``."""
    return f"{100 * gain.mean:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
