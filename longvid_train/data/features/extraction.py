"""Media of manifests as pieces of frames for the tower, for any number of processes: what `longvid predict` reads."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longvid_train.data.dataset import MAX_WORKERS, BadSamples
from longvid_train.data.features.file_hashes import STORE_FILE, FileHashes
from longvid_train.data.features.index import FeatureIndex
from longvid_train.data.features.settings import (
    FeatureSettings,
    StorageOptions,
    clip_key,
    describe_sampling,
    times_sha256,
)
from longvid_train.data.features.shards import Clip
from longvid_train.data.features.source import preprocessing_settings
from longvid_train.data.features.writer import stored_frames
from longvid_train.data.manifest import ManifestRules, MediaType, read_manifest
from longvid_train.data.media import MediaOptions
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.windows import windowed
from longvid_train.data.worker_threads import decoding_threads
from longvid_train.errors import UserError
from longvid_train.models.llama_vid.processing import LlamaVidProcessor
from longvid_train.models.llama_vid.tower_file import tower_sha256
from longvid_train.video import AtTimes, Sampling, VideoInfo, probe, read_clip, read_image, select

log = logging.getLogger(__name__)

DECODE_BYTES = 256 << 20
"""RGB bytes of a video that are decoded at once."""


@dataclass(frozen=True)
class Medium:
    """A distinct image, or part of a video, and the manifest line that first names it."""

    path: Path
    type: MediaType
    sampling: Sampling | None
    where: str


class FramePiece(NamedTuple):
    """Consecutive preprocessed frames of one clip: what ``predict_step`` gets.

    Attributes:
        pixel_values: ``(n, 3, h, w)`` float32.
        clip: the whole clip.
        first_frame: number of the first of them in it.
        times_s: of the frames.
    """

    pixel_values: torch.Tensor
    clip: Clip
    first_frame: int
    times_s: tuple[float, ...]


class PieceDataset(IterableDataset[FramePiece]):
    """Pieces of the media of one process; each of its workers takes every n-th medium."""

    def __init__(
        self,
        media: Sequence[Medium],
        stored: Mapping[tuple[str, str], tuple[int, Clip]],
        settings: FeatureSettings,
        processor: MultimodalProcessor,
        options: MediaOptions,
        hashes: FileHashes,
        bad_samples: BadSamples,
        frames_per_batch: int,
    ) -> None:
        """Leave out what ``stored`` has already."""
        self._media = media
        self._stored = stored
        self._settings = settings
        self._processor = processor
        self._options = options
        self._hashes = hashes
        self._bad_samples = bad_samples
        self._frames_per_batch = frames_per_batch
        self._skipped = torch.zeros(MAX_WORKERS + 1, dtype=torch.int64)
        self._skipped.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def skipped(self) -> int:
        """Media left out so far because they could not be read."""
        return int(self._skipped.sum())

    def __iter__(self) -> Iterator[FramePiece]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for medium in self._media[number::workers]:
            try:
                yield from self._pieces(medium)
            except UserError as error:
                self._judge(UserError(f"{medium.where}: {error}"), number)

    def _pieces(self, medium: Medium) -> Iterator[FramePiece]:
        digest, described = self._hashes.sha256(medium.path), describe_sampling(medium.sampling)
        done, stored = self._stored.get((digest, described), (0, None))
        if stored is not None and done == stored.frame_count:
            return
        info = None if medium.sampling is None else probe(medium.path, limits=self._options.limits)
        times_s = _times_s(medium, info)
        times_digest = times_sha256(times_s)
        key = clip_key(self._settings, digest, described, times_digest)
        clip = Clip(key, str(medium.path), digest, described, len(times_s), times_digest)
        first = done if stored is not None and stored.key == key else 0
        for frames in self._decoded(medium, info, times_s[first:]):
            for start in range(0, len(frames), self._frames_per_batch):
                part = frames[start : start + self._frames_per_batch]
                pixels = self._processor.preprocess_frames(part)
                yield FramePiece(pixels, clip, first, times_s[first : first + len(part)])
                first += len(part)

    def _decoded(
        self, medium: Medium, info: VideoInfo | None, times_s: tuple[float, ...]
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield ``(n, height, width, 3)`` frames in order, at most `DECODE_BYTES` at once."""
        options = self._options
        if info is None:
            yield read_image(medium.path, limits=options.limits)[None]
            return
        size = max(1, DECODE_BYTES // (info.width * info.height * 3))
        for start in range(0, len(times_s), size):
            yield read_clip(
                medium.path,
                AtTimes(times_s=times_s[start : start + size]),
                reader=options.reader,
                isolated=options.isolated,
                limits=options.limits,
                shortest_edge=options.shortest_edge,
                workers=decoding_threads(),
            ).frames

    def _judge(self, error: UserError, worker: int) -> None:
        """Count and log a medium that cannot be read, or stop the run."""
        if self._bad_samples.on_bad_sample == "stop":
            raise error
        self._skipped[worker] += 1
        log.warning("skipped %s", error)
        if self.skipped > self._bad_samples.max_bad_samples:
            raise UserError(
                f"{self.skipped} unreadable media, more than max_bad_samples = {self._bad_samples.max_bad_samples}; "
                f"the last: {error}"
            )


class FeatureDataModule(pl.LightningDataModule):
    """Every distinct medium of some manifests, once, for ``longvid predict`` with ``TowerFeatures``.

    Attributes:
        storage: what is kept of a frame.
    """

    def __init__(
        self,
        processor: str,
        manifests: str | list[str],
        media: MediaOptions = MediaOptions(),  # noqa: B008 - frozen
        storage: StorageOptions = StorageOptions(),  # noqa: B008 - frozen
        bad_samples: BadSamples = BadSamples(),  # noqa: B008 - frozen
        rules: ManifestRules = ManifestRules(),  # noqa: B008 - frozen
        shard: str = "1/1",
        frames_per_batch: int = 32,
        num_workers: int = 0,
    ) -> None:
        """Keep the settings; files are read in ``setup``.

        Args:
            processor: folder of the LLaMA-VID checkpoint whose tower makes the features.
            manifests: manifest or manifests whose media are encoded.
            media: how videos and images are read; the training run must read them the same way.
            storage: what is kept of a frame.
            bad_samples: what to do with media that cannot be read.
            rules: what manifests must fulfil.
            shard: ``I/N``: this job takes every N-th medium from the I-th on; jobs 1/N to N/N may run at once.
            frames_per_batch: frames the tower encodes at once.
            num_workers: processes that decode on each rank; 0 decodes in the process of the tower.

        Raises:
            UserError: a number or ``shard`` is out of range.
        """
        super().__init__()
        self._folder = processor
        self._manifests = [manifests] if isinstance(manifests, str) else manifests
        self._media_options = media
        self.storage = storage
        self._bad_samples = bad_samples
        self._rules = rules
        self.shard = _parse_shard(shard)
        if frames_per_batch < 1:
            raise UserError(f"frames_per_batch is {frames_per_batch}; it must be at least 1")
        if not 0 <= num_workers <= MAX_WORKERS:
            raise UserError(f"num_workers is {num_workers}; it must be 0 to {MAX_WORKERS}")
        self._frames_per_batch = frames_per_batch
        self._num_workers = num_workers
        self._media: list[Medium] = []

    @property
    def writer_name(self) -> str:
        """A word that no other running process of the same extraction has."""
        job, jobs = self.shard
        return f"{job}of{jobs}-{self.trainer.global_rank}of{self.trainer.world_size}"

    def setup(self, stage: str) -> None:
        """Read the manifests and everything the features depend on, and check what the folder holds already.

        Raises:
            UserError: a manifest is broken, or the run folder holds features made with other settings.
        """
        if stage != "predict":
            raise UserError(f"{stage} cannot read FeatureDataModule: it makes features for longvid predict")
        options = self._media_options
        if options.features is not None:
            raise UserError("data.media.features is set: features are made from pixels; leave it out")
        self._processor = LlamaVidProcessor.from_pretrained(self._folder)
        self._check_grid()
        preprocessing = preprocessing_settings(
            self._processor, reader=options.reader, shortest_edge=options.shortest_edge, exact=options.exact
        )
        self.run_dir = Path(self.trainer.default_root_dir)
        self.settings = FeatureSettings(
            tower=tower_sha256(Path(self._folder)),
            preprocessing=preprocessing,
            sampling=describe_sampling(options.sampling),
            dtype=self.storage.dtype,
            patches=self.storage.patches,
            precision=str(self.trainer.precision),
        )
        self._stored = stored_frames(self.run_dir, self.settings)
        self._media = _distinct_media(self._manifests, self._rules, options.sampling)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._hashes = FileHashes(self.run_dir / STORE_FILE, rehash=options.rehash_files)

    def predict_dataloader(self) -> DataLoader[FramePiece]:
        """Pieces of this process's media."""
        (job, jobs), rank, ranks = self.shard, self.trainer.global_rank, self.trainer.world_size
        mine = self._media[(job - 1) * ranks + rank :: jobs * ranks]
        self._dataset = PieceDataset(
            mine,
            self._stored,
            self.settings,
            self._processor,
            self._media_options,
            self._hashes,
            self._bad_samples,
            self._frames_per_batch,
        )
        log.info("features: %d of %d media in this process", len(mine), len(self._media))
        return DataLoader(self._dataset, batch_size=None, num_workers=self._num_workers)

    def missing(self, index: FeatureIndex) -> list[Medium]:
        """Media of the manifests that a merged index does not list: other jobs', or skipped ones."""
        listed = {(entry.clip.file_sha256, entry.clip.sampling) for entry in index.entries.values()}
        return [
            medium
            for medium in self._media
            if (self._hashes.remembered(medium.path), describe_sampling(medium.sampling)) not in listed
        ]

    @property
    def media_count(self) -> int:
        """Distinct media of all manifests."""
        return len(self._media)

    def _check_grid(self) -> None:
        if self.storage.grid and self._processor.visual_grid % self.storage.grid:
            raise UserError(
                f"data.storage.patches is '{self.storage.patches}' and the tower has {self._processor.visual_grid} x "
                f"{self._processor.visual_grid} patches; n must divide {self._processor.visual_grid}"
            )


def _distinct_media(paths: Sequence[str], rules: ManifestRules, sampling: Sampling) -> list[Medium]:
    """Media of all manifests in order of first use."""
    found: dict[tuple[Path, Sampling | None], Medium] = {}
    for path in paths:
        manifest = read_manifest(Path(path), rules)
        for row, sample in enumerate(manifest):
            for medium in sample.media:
                file = manifest.resolve(medium.path)
                part = None if medium.type == "image" else windowed(sampling, medium)
                where = f"{manifest.path}:{manifest.line_number(row)}"
                found.setdefault((file, part), Medium(file, medium.type, part, where))
    if not found:
        raise UserError(f"no row of {', '.join(paths)} shows an image or video; there is nothing to make features of")
    return list(found.values())


def _times_s(medium: Medium, info: VideoInfo | None) -> tuple[float, ...]:
    if info is None or medium.sampling is None:
        return (0.0,)
    try:
        indices = select(medium.sampling, info.timestamps_s, info.duration_s)
    except UserError as error:
        raise UserError(f"{medium.path}: {error}") from error
    return tuple(info.timestamps_s[indices].tolist())


def _parse_shard(text: str) -> tuple[int, int]:
    job, slash, jobs = text.partition("/")
    if not (slash and job.isdigit() and jobs.isdigit() and 1 <= int(job) <= int(jobs)):
        raise UserError(f"shard is '{text}'; write I/N with 1 <= I <= N, e.g. 2/4")
    return int(job), int(jobs)
