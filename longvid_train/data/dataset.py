"""A map-style dataset over manifests: rows are decoded in the worker, and a bad row is never replaced silently."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch.utils.data import Dataset, get_worker_info

from longvid_train.data.conversation import (
    ConversationOptions,
    EncodedSample,
    SampleTooLongError,
    encode_conversation,
    encode_prompt,
    sequence_length,
)
from longvid_train.data.manifest import Manifest, Sample
from longvid_train.data.media import MediaLoader, MediaOptions
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import ChatTemplate
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
        too_long: ``"error"`` ends the run at a row longer than ``max_tokens``; ``"skip"`` leaves it out (counted
            separately, without a limit).
    """

    on_bad_sample: Literal["stop", "skip"] = "stop"
    max_bad_samples: int = 100
    too_long: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class DatasetCounts:
    """Totals over all workers of this process since the dataset was made."""

    bad_samples: int
    too_long_samples: int
    cache_hits: int
    cache_misses: int


_BAD, _TOO_LONG, _HITS, _MISSES = range(4)


class ManifestDataset(Dataset[EncodedSample]):
    """Rows of one or several manifests, one after the other, as `EncodedSample`.

    ``dataset[i]`` raises on a bad row; ``dataset.__getitems__`` (what a ``DataLoader`` calls) applies `BadSamples`.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        processor: MultimodalProcessor,
        template: ChatTemplate,
        *,
        conversation: ConversationOptions,
        media: MediaOptions,
        bad_samples: BadSamples = BadSamples(),
        for_generation: bool = False,
        seed: int = 0,
    ) -> None:
        """Build over checked manifests; ``for_generation`` leaves the last answer out."""
        self.manifests = tuple(manifests)
        self._processor = processor
        self._template = template
        self._conversation = conversation
        self._bad_samples = bad_samples
        self._encode = encode_prompt if for_generation else encode_conversation
        self._seed = seed
        self._loader = MediaLoader(media, processor)
        self._ends = torch.tensor([len(manifest) for manifest in manifests]).cumsum(0).tolist()
        # One row of counters a worker (the last for the main process): no two processes write the same cell.
        self._counters = torch.zeros(MAX_WORKERS + 1, 4, dtype=torch.int64)
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
        manifest, row = self.locate(index)
        sample = manifest[row]
        where = f"{manifest.path}:{manifest.line_number(row)} (sample '{sample.id}')"
        try:
            media = [self._loader.load(medium, manifest.path.parent) for medium in sample.media]
            return self._encode(
                sample.conversation,
                media,
                self._processor,
                self._template,
                self._conversation,
                sample_id=sample.id,
                seed=self._seed,
                epoch=epoch,
            )
        except SampleTooLongError as error:
            raise SampleTooLongError(f"{where}: {error}") from error
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

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
        return samples

    def length(self, index: int) -> int:
        """Exact tokens of a row, from its text and its containers' headers alone.

        Raises:
            UserError: a container cannot be read.
        """
        manifest, row = self.locate(index)
        sample = manifest[row]
        layouts = [self._loader.layout(medium, manifest.path.parent) for medium in sample.media]
        return sequence_length(sample.conversation, layouts, self._processor, self._template, self._conversation)

    def counts(self) -> DatasetCounts:
        """What was skipped and found in caches so far, over all workers of this process."""
        bad, too_long, hits, misses = self._counters.sum(0).tolist()
        return DatasetCounts(bad, too_long, hits, misses)

    def _judge(self, error: UserError) -> BatchFailure | None:
        """Count and log a skip, or return the failure that stops the run."""
        too_long = isinstance(error, SampleTooLongError)
        policy = self._bad_samples
        if (policy.too_long == "error") if too_long else (policy.on_bad_sample == "stop"):
            return BatchFailure(str(error))
        self._own_counters()[_TOO_LONG if too_long else _BAD] += 1
        log.warning("skipped %s", error)
        skipped = self.counts().bad_samples
        if skipped > policy.max_bad_samples:
            return BatchFailure(
                f"{skipped} bad samples, more than max_bad_samples = {policy.max_bad_samples}; the last: {error}"
            )
        return None

    def _own_counters(self) -> torch.Tensor:
        worker = get_worker_info()
        return self._counters[MAX_WORKERS if worker is None else worker.id]
