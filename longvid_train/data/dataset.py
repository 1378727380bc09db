"""A map-style dataset over manifests: rows are decoded in the worker, and a bad row is never replaced silently."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import Dataset, get_worker_info

from longvid_train.data.budget import RowPlan, RowPlanner, TokenBudget
from longvid_train.data.conversation import (
    ConversationOptions,
    EncodedSample,
    SampleTooLongError,
    encode_conversation,
    encode_prompt,
)
from longvid_train.data.features.source import FeatureSource
from longvid_train.data.manifest import Manifest, Sample
from longvid_train.data.media import MediaLoader, MediaOptions
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import Template
from longvid_train.errors import UserError

log = logging.getLogger(__name__)

MAX_WORKERS = 256


class Draw(NamedTuple):
    """What the sampler asks for: a row, and the epoch that decides its random choices."""

    row: int
    epoch: int


@dataclass(frozen=True)
class BatchFailure:
    """What a worker sends instead of a batch that must stop the run; the loader raises it as one clear line."""

    message: str


@dataclass(frozen=True, kw_only=True)
class BadSamples:
    """What to do with rows that cannot be used. Skipped rows make their batch smaller; they are counted and logged.

    Attributes:
        on_bad_sample: ``"stop"`` ends the run at the first unreadable medium; ``"skip"`` leaves the row out.
        max_bad_samples: with ``"skip"``, more skipped rows than this end the run (counted over all workers of this
            process).
        too_long: ``"error"`` ends the run at a row that ``TokenBudget`` cannot make fit ``max_tokens``; ``"skip"``
            leaves it out.
        max_too_long_samples: with ``"skip"``, more rows left out as too long than this end the run (counted likewise).
    """

    on_bad_sample: Literal["stop", "skip"] = "stop"
    max_bad_samples: int = 100
    too_long: Literal["error", "skip"] = "error"
    max_too_long_samples: int = 100


@dataclass(frozen=True)
class DatasetCounts:
    """Totals over all workers of this process since the dataset was made; a row counts each time it is drawn.

    Attributes:
        bad_samples: rows left out because a medium could not be read.
        too_long_samples: rows left out because they could not be made to fit.
        cache_hits: videos found decoded.
        cache_misses: videos decoded.
        shortened_samples: rows the token budget took something from.
        frames_dropped: frames it left out.
        text_tokens_dropped: tokens of text it left out.
    """

    bad_samples: int = 0
    too_long_samples: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    shortened_samples: int = 0
    frames_dropped: int = 0
    text_tokens_dropped: int = 0


_BAD, _TOO_LONG, _HITS, _MISSES, _SHORTENED, _FRAMES, _TEXT = range(7)


class ManifestDataset(Dataset[EncodedSample]):
    """Rows of one or several manifests, one after the other, as `EncodedSample`.

    ``dataset[i]`` raises on a bad row; ``dataset.__getitems__`` (what a ``DataLoader`` calls) applies `BadSamples`.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        processor: MultimodalProcessor,
        template: Template,
        *,
        conversation: ConversationOptions,
        media: MediaOptions,
        features: FeatureSource | None = None,
        budget: TokenBudget = TokenBudget(),  # noqa: B008 - frozen
        bad_samples: BadSamples = BadSamples(),
        for_generation: bool = False,
        seed: int = 0,
    ) -> None:
        """Build over checked manifests; ``features`` are read instead of pixels, ``for_generation`` leaves the last
        answer out."""
        self.manifests = tuple(manifests)
        self._processor = processor
        self._template = template
        self._bad_samples = bad_samples
        self._for_generation = for_generation
        self._planner = RowPlanner(processor, template, conversation, budget, for_generation=for_generation)
        self._seed = seed
        self._loader = MediaLoader(media, processor, features)
        self._ends = torch.tensor([len(manifest) for manifest in manifests]).cumsum(0).tolist()
        # One row of counters a worker (the last for the main process): no two processes write the same cell.
        self._counters = torch.zeros(MAX_WORKERS + 1, 7, dtype=torch.int64)
        self._counters.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sample(self, index: int) -> Sample:
        """The manifest row behind ``dataset[index]``."""
        manifest, row = self.locate(index)
        return manifest[row]

    def locate(self, index: int) -> tuple[Manifest, int]:
        """The manifest and the row number in it behind ``dataset[index]``."""
        start = 0
        for manifest, end in zip(self.manifests, self._ends, strict=True):
            if start <= index < end:
                return manifest, index - start
            start = end
        raise IndexError(index)

    def __getitem__(self, draw: Draw | int) -> EncodedSample:
        """Decode and encode one row (epoch 0 for a plain index).

        Raises:
            UserError: ``file:line (sample 'id')`` and what is wrong with its media or length.
        """
        index, epoch = draw if isinstance(draw, Draw) else (draw, 0)
        sample, folder = self._row(index)
        with self.named(index):
            plan = self._plan(sample, folder)
            media = [self._loader.load(medium, folder, plan.max_frames) for medium in sample.media[: plan.media]]
            turns = sample.conversation[: plan.turns]
            names: dict[str, Any] = {"sample_id": sample.id, "seed": self._seed, "epoch": epoch}
            if self._for_generation:
                encoded = encode_prompt(turns, media, self._processor, self._template, plan.options, **names)
            else:
                encoded = encode_conversation(
                    turns,
                    media,
                    self._processor,
                    self._template,
                    plan.options,
                    **names,
                    cut_answer=plan.cut_answer,
                )
        return replace(encoded, shortening=plan.shortening)

    def __getitems__(self, draws: Sequence[Draw | int]) -> "list[EncodedSample] | BatchFailure":
        """Rows of one batch without the bad ones, or the failure that must stop the run."""
        samples: list[EncodedSample] = []
        for draw in draws:
            try:
                samples.append(self[draw])
            except UserError as error:
                failure = self._judge(error)
                if failure is not None:
                    return failure
        self._own_counters()[_HITS] = self._loader.cache.hits
        self._own_counters()[_MISSES] = self._loader.cache.misses
        self._count_shortened(samples)
        return samples

    def plan(self, index: int) -> RowPlan:
        """How a row will be read and what it costs, from its text and its containers' headers alone.

        Raises:
            UserError: ``file:line (sample 'id')`` and what is wrong with its containers or length.
        """
        sample, folder = self._row(index)
        with self.named(index):
            return self._plan(sample, folder)

    def usable_plan(self, index: int) -> RowPlan | None:
        """As `plan`; None for a row that `BadSamples` leaves out (counted and logged here).

        Raises:
            UserError: the row stops the run.
        """
        try:
            return self.plan(index)
        except UserError as error:
            failure = self._judge(error)
            if failure is not None:
                raise UserError(failure.message) from error
            return None

    def counts(self) -> DatasetCounts:
        """What was skipped and found in caches so far, over all workers of this process."""
        return DatasetCounts(*self._counters.sum(0).tolist())

    def _row(self, index: int) -> tuple[Sample, Path]:
        manifest, row = self.locate(index)
        return manifest[row], manifest.path.parent

    def _plan(self, sample: Sample, folder: Path) -> RowPlan:
        return self._planner.plan(sample.conversation, [self._loader.layout(medium, folder) for medium in sample.media])

    @contextmanager
    def named(self, index: int) -> Iterator[None]:
        """Put the row's place and id in front of what goes wrong with it."""
        try:
            yield
        except UserError as error:
            manifest, row = self.locate(index)
            where = f"{manifest.path}:{manifest.line_number(row)} (sample '{manifest[row].id}')"
            kind = SampleTooLongError if isinstance(error, SampleTooLongError) else UserError
            raise kind(f"{where}: {error}") from error

    def _count_shortened(self, samples: Sequence[EncodedSample]) -> None:
        counters = self._own_counters()
        for shortening in (sample.shortening for sample in samples):
            if shortening is not None:
                counters[_SHORTENED] += 1
                counters[_FRAMES] += shortening.frames
                counters[_TEXT] += shortening.text_tokens

    def _judge(self, error: UserError) -> BatchFailure | None:
        """Count and log a skip, or return the failure that stops the run."""
        too_long = isinstance(error, SampleTooLongError)
        policy = self._bad_samples
        if (policy.too_long == "error") if too_long else (policy.on_bad_sample == "stop"):
            return BatchFailure(str(error))
        self._own_counters()[_TOO_LONG if too_long else _BAD] += 1
        log.warning("skipped %s", error)
        counts = self.counts()
        skipped, most, name = (
            (counts.too_long_samples, policy.max_too_long_samples, "too_long")
            if too_long
            else (counts.bad_samples, policy.max_bad_samples, "bad")
        )
        if skipped <= most:
            return None
        return BatchFailure(
            f"{skipped} {name.replace('_', ' ')} samples, more than max_{name}_samples = {most}; the last: {error}"
        )

    def _own_counters(self) -> torch.Tensor:
        worker = get_worker_info()
        return self._counters[MAX_WORKERS if worker is None else worker.id]
