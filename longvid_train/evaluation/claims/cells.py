"""Scores of every method at every number of frames, kept on disk cell by cell, so that an interrupted run goes on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.evaluation.claims.answering import Answered, KnownTexts, answer_clips, encode_clips
from longvid_train.evaluation.claims.asking import ask_clips, chat_under
from longvid_train.evaluation.claims.held_out import HeldOut
from longvid_train.evaluation.claims.methods import Method
from longvid_train.evaluation.statistics import Interval, bootstrap_clusters
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
        """A method whose adaptation or weights changed has other files."""
        return self._folder / f"{method.name}_{method.digest()}_{frames}_{seed}.json"


class Scores:
    """Answers of every cell of a grid, by method and number of frames; seeds one after another.

    Intervals are of whole episodes drawn again, since answers about one episode depend on each other: those to its
    other questions, and those about it at other numbers of frames.
    """

    def __init__(self, answers: dict[tuple[str, int], list[Answered]]) -> None:
        self._answers = answers

    def has(self, method: str) -> bool:
        """Whether a method was run."""
        return any(name == method for name, _ in self._answers)

    def values(self, method: str, *frames: int, kind: str | None = None) -> NDArray[np.float64]:
        """Scores in the order of the questions, which is the same for all methods."""
        return np.array([one.score for one in self._asked(method, frames, kind)])

    def interval(self, method: str, *frames: int, kind: str | None = None) -> Interval:
        """Mean score and its interval."""
        asked = self._asked(method, frames, kind)
        return bootstrap_clusters([one.score for one in asked], [one.episode for one in asked])

    def answers(self, method: str, frames: int) -> list[Answered]:
        """Of a cell, in the order of `values`."""
        return self._answers[method, frames]

    def gain(self, better: tuple[str, int], worse: tuple[str, int], *, kind: str | None = None) -> Interval:
        """Mean of the paired differences of two cells that were asked the same questions."""
        return self._paired(self._asked(better[0], better[1:], kind), self._asked(worse[0], worse[1:], kind))

    def gain_beyond(self, better: str, worse: str, frames: Sequence[int], *, kind: str | None = None) -> Interval:
        """The same over several numbers of frames together."""
        return self._paired(self._asked(better, frames, kind), self._asked(worse, frames, kind))

    def _asked(self, method: str, frames: Sequence[int], kind: str | None) -> list[Answered]:
        answered = [one for count in frames for one in self._answers[method, count]]
        return [one for one in answered if kind in (None, one.kind)]

    @staticmethod
    def _paired(better: Sequence[Answered], worse: Sequence[Answered]) -> Interval:
        pairs = list(zip(better, worse, strict=True))
        assert all((one.episode, one.question) == (other.episode, other.question) for one, other in pairs)
        return bootstrap_clusters([one.score - other.score for one, other in pairs], [one.episode for one, _ in pairs])

    def bits(self, method: str) -> float:
        """Measured bits of a number of a method's KV cache, mean over all its answers.

        Every method of the claim has a compressed cache but the one in full precision, whose bits are those of the
        model's dtype here, float32.
        """
        found = [one.cache_bits for (name, _), cell in self._answers.items() if name == method for one in cell]
        return fmean(32.0 if bits is None else bits for bits in found)

    def cache_bytes(self, method: str, frames: int) -> float:
        """Measured bytes of a question's KV cache under a method of a claim about caches, mean over a cell."""
        return fmean(one.cache_bytes for one in self._answers[method, frames] if one.cache_bytes is not None)


def run_grid(
    grid: Grid,
    seeds: Sequence[int],
    answer: Callable[[Method, int, int], list[Answered]],
    store: CellStore,
    *,
    on_progress: Callable[[int, int], None],
) -> Scores:
    """Run what the store lacks, and return everything.

    Args:
        grid: what to run.
        seeds: questions are drawn from every one of them.
        answer: a method's answers at a number of frames to the questions of a seed; see `BackboneAnswers`. All methods
            are asked before the next seed.
        store: keeps the answers.
        on_progress: called with cells done and cells in all, after each cell.
    """
    answers: dict[tuple[str, int], list[Answered]] = {}
    cells = [(frames, seed, method) for frames in grid.frames for seed in seeds for method in grid.methods]
    for done, (frames, seed, method) in enumerate(cells, start=1):
        answered = store.read(method, frames, seed)
        if answered is None:
            answered = answer(method, frames, seed)
            store.write(method, frames, seed, answered)
        answers.setdefault((method.name, frames), []).extend(answered)
        on_progress(done, len(cells))
    return Scores(answers)


class BackboneAnswers:
    """Answers under the methods' adaptations; methods of the same plan share a clip's visual tokens.

    Methods that also rotate alike, as all do within the trained window, share their answers.

    Args:
        backbones: the model that answers for a method. Visual tokens are shared: they differ elsewhere.
        processor: of the checkpoint.
        held_out: questions of a number of frames and a seed.
        one_by_one: see `Grid`.
    """

    def __init__(
        self,
        backbones: Callable[[Method], AnyBackbone],
        processor: BackboneProcessor,
        held_out: Callable[[int, int], tuple[HeldOut, ...]],
        *,
        one_by_one: bool = False,
    ) -> None:
        self._backbones, self._processor, self._held_out = backbones, processor, held_out
        self._one_by_one = one_by_one
        self._shown: tuple[int, int] | None = None
        self._clips: tuple[HeldOut, ...] = ()
        self._tokens: dict[TokenPlan, torch.Tensor] = {}
        self._known: dict[tuple[TokenPlan, int], KnownTexts] = {}

    def __call__(self, method: Method, frames: int, seed: int) -> list[Answered]:
        """Clip after clip, question after question."""
        if self._shown != (frames, seed):
            self._shown, self._clips = (frames, seed), self._held_out(frames, seed)
            self._tokens, self._known = {}, {}
        backbone, clips = self._backbones(method), self._clips
        if self._one_by_one:
            return ask_clips(chat_under(backbone, self._processor, method.adaptation), clips)
        plan = method.adaptation.plan_frames(frames, backbone.facts.grid)
        if plan not in self._tokens:
            self._tokens[plan] = encode_clips(backbone, self._processor, clips, plan)
        known = self._known.setdefault((plan, id(backbone)), {})
        return answer_clips(backbone, self._processor, clips, self._tokens[plan], plan, method.adaptation, known)
