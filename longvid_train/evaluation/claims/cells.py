"""Scores of every method at every number of frames, kept on disk cell by cell, so that an interrupted run goes on."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.evaluation.claims.answering import Answered, answer_clips, encode_clips
from longvid_train.evaluation.claims.asking import ask_clips, chat_under
from longvid_train.evaluation.claims.held_out import HeldOut
from longvid_train.evaluation.claims.methods import Method
from longvid_train.evaluation.statistics import Interval, bootstrap_mean
from longvid_train.files import write_json
from longvid_train.models.backbones import BackboneProcessor
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.tokens.plan import TokenPlan

SETTINGS_FILE = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is run: every method at every number of frames.

    Attributes:
        methods: rows.
        frames: columns.
        one_by_one: ask each question alone and measure what it takes; methods that zoom need it.
    """

    methods: tuple[Method, ...]
    frames: tuple[int, ...]
    one_by_one: bool = False


class CellStore:
    """Answers on disk, one JSON file a cell.

    Args:
        folder: for the cells and the settings they were made with.
        settings: plain values that make a cell what it is: the model's fingerprint, the number of questions, ...

    Raises:
        UserError: ``folder`` holds cells of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        plain = json.loads(json.dumps(settings))
        record = folder / SETTINGS_FILE
        if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != plain:
            raise UserError(f"{folder} holds answers made with other settings or another model; choose another --out")
        write_json(record, plain)

    def read(self, method: Method, frames: int, seed: int) -> list[Answered] | None:
        """The answers of a cell, or None where it has not run."""
        path = self._path(method, frames, seed)
        if not path.is_file():
            return None
        return [Answered(**row) for row in json.loads(path.read_text(encoding="utf-8"))]

    def write(self, method: Method, frames: int, seed: int, answers: Sequence[Answered]) -> None:
        """Keep the answers of a cell."""
        write_json(self._path(method, frames, seed), [asdict(one) for one in answers])

    def _path(self, method: Method, frames: int, seed: int) -> Path:
        name = f"{method.name}_{method.weights}" if method.weights else method.name
        return self._folder / f"{name}_{frames}_{seed}.json"


class Scores:
    """Answers of every cell of a grid, by method and number of frames; seeds one after another."""

    def __init__(self, answers: dict[tuple[str, int], list[Answered]]) -> None:
        self._answers = answers

    def has(self, method: str) -> bool:
        """Whether a method was run."""
        return any(name == method for name, _ in self._answers)

    def values(self, method: str, *frames: int, kind: str | None = None) -> NDArray[np.float64]:
        """Scores in the order of the questions, which is the same for all methods."""
        answered = [one for count in frames for one in self._answers[method, count]]
        return np.array([one.score for one in answered if kind in (None, one.kind)])

    def interval(self, method: str, *frames: int, kind: str | None = None) -> Interval:
        """Mean score and its interval."""
        return bootstrap_mean(list(self.values(method, *frames, kind=kind)))

    def answers(self, method: str, frames: int) -> list[Answered]:
        """Of a cell, in the order of `values`."""
        return self._answers[method, frames]

    def gain(self, better: tuple[str, int], worse: tuple[str, int], *, kind: str | None = None) -> Interval:
        """Mean of the paired differences of two cells that were asked the same questions."""
        return bootstrap_mean(list(self.values(*better, kind=kind) - self.values(*worse, kind=kind)))

    def gain_beyond(self, better: str, worse: str, frames: Sequence[int]) -> Interval:
        """The same over several numbers of frames together."""
        return bootstrap_mean(list(self.values(better, *frames) - self.values(worse, *frames)))


def run_grid(
    grid: Grid,
    seeds: Sequence[int],
    backbones: Callable[[Method], AnyBackbone],
    processor: BackboneProcessor,
    store: CellStore,
    *,
    held_out: Callable[[int, int], tuple[HeldOut, ...]],
    on_progress: Callable[[int, int], None],
) -> Scores:
    """Run what the store lacks, and return everything.

    Args:
        grid: what to run.
        seeds: questions are drawn from every one of them.
        backbones: the model that answers for a method. Visual tokens are shared: they differ elsewhere.
        processor: of the checkpoint.
        store: keeps the answers.
        held_out: questions of a number of frames and a seed.
        on_progress: called with cells done and cells in all, after each cell.
    """
    answers: dict[tuple[str, int], list[Answered]] = {}
    done, cells = 0, len(grid.methods) * len(grid.frames) * len(seeds)
    for frames in grid.frames:
        for seed in seeds:
            for method, answered in _column(grid, backbones, processor, store, frames, seed, held_out):
                answers.setdefault((method.name, frames), []).extend(answered)
                done += 1
                on_progress(done, cells)
    return Scores(answers)


def _column(
    grid: Grid,
    backbones: Callable[[Method], AnyBackbone],
    processor: BackboneProcessor,
    store: CellStore,
    frames: int,
    seed: int,
    held_out: Callable[[int, int], tuple[HeldOut, ...]],
) -> Iterator[tuple[Method, list[Answered]]]:
    """Every method on one set of clips; methods of the same plan share its visual tokens."""
    clips: tuple[HeldOut, ...] = ()
    tokens: dict[TokenPlan, torch.Tensor] = {}
    for method in grid.methods:
        answered = store.read(method, frames, seed)
        if answered is None:
            backbone = backbones(method)
            clips = clips or held_out(frames, seed)
            if grid.one_by_one:
                answered = ask_clips(chat_under(backbone, processor, method.adaptation), clips)
            else:
                plan = method.adaptation.plan_frames(frames, backbone.facts.grid)
                if plan not in tokens:
                    tokens[plan] = encode_clips(backbone, processor, clips, plan)
                answered = answer_clips(backbone, processor, clips, tokens[plan], plan, method.adaptation)
            store.write(method, frames, seed, answered)
        yield method, answered
