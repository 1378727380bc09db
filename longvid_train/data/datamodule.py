"""``ManifestDataModule``: manifests to batches for Lightning. Its arguments are the keys of ``data:`` in a config."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl

from longvid_train.data.budget import TokenBudget
from longvid_train.data.collate import PaddingSide
from longvid_train.data.conversation import ConversationOptions
from longvid_train.data.dataset import BadSamples, DatasetCounts, ManifestDataset
from longvid_train.data.loader import BatchCollator, EpochOrder, ManifestLoader, make_loader
from longvid_train.data.manifest import Manifest, ManifestRules, read_manifest
from longvid_train.data.media import MediaOptions
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import template_by_name
from longvid_train.errors import UserError
from longvid_train.models.llama_vid.processing import LlamaVidProcessor

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ManifestSource:
    """One training manifest and how often an epoch visits it.

    Attributes:
        path: the JSON Lines file.
        weight: 1.0 is every row once an epoch, 2.0 twice, 0.5 a new random half each epoch.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse weights that are not positive."""
        if not self.weight > 0:
            raise UserError(f"the weight of manifest '{self.path}' is {self.weight}; it must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How batches are made.

    Attributes:
        batch_size: rows of a training batch on one rank.
        eval_batch_size: rows of a validation or test batch on one rank.
        num_workers: processes that read ahead on each rank; 0 reads in the training process.
        group_by_length: put rows of like length into a training batch (reads every row and container header once at
            the start).
        pin_memory: page-locked batches, for GPUs.
        seed: decides the order of rows and random placeholder positions.
    """

    batch_size: int = 1
    eval_batch_size: int = 1
    num_workers: int = 0
    group_by_length: bool = False
    pin_memory: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that make no batch."""
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")


class ManifestDataModule(pl.LightningDataModule):
    """Training, validation and test batches from manifests.

    Validation and test visit every row exactly once in file order; training leaves out at most ``world_size - 1`` rows
    an epoch. Batches hold labels (teacher forcing) in all three; ``predict`` batches are the test rows without their
    last answer, padded on the left for generation.

    Attributes:
        template: the chat template.
        conversation: how conversations become tokens.
    """

    def __init__(
        self,
        processor: str,
        train: str | list[str | ManifestSource] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        template: str = "vicuna_v1",
        conversation: ConversationOptions = ConversationOptions(),  # noqa: B008 - frozen
        media: MediaOptions = MediaOptions(),  # noqa: B008 - frozen
        budget: TokenBudget = TokenBudget(),  # noqa: B008 - frozen
        bad_samples: BadSamples = BadSamples(),  # noqa: B008 - frozen
        rules: ManifestRules = ManifestRules(),  # noqa: B008 - frozen
        loading: LoadingOptions = LoadingOptions(),
    ) -> None:
        """Keep the settings; files are read in ``setup``.

        Args:
            processor: folder that ``LlamaVidProcessor.from_pretrained`` reads.
            train: training manifest or manifests, with weights where wanted.
            val: validation manifest or manifests.
            test: test manifest or manifests.
            template: ``"vicuna_v1"`` or ``"plain"``.
            conversation: how conversations become tokens.
            media: how videos and images are read.
            budget: how rows longer than ``conversation.max_tokens`` are made to fit.
            bad_samples: what to do with rows that cannot be used.
            rules: what manifests must fulfil.
            loading: batches, workers, seed.

        Raises:
            UserError: the template does not exist.
        """
        super().__init__()
        self._processor_folder = processor
        sources = _sources(train)
        self._paths = {
            "train": [source.path for source in sources],
            "val": [source.path for source in _sources(val)],
            "test": [source.path for source in _sources(test)],
        }
        self._weights = tuple(source.weight for source in sources)
        self.template = template_by_name(template)
        self.conversation = conversation
        self._media = media
        self._budget = budget
        self._bad_samples = bad_samples
        self._rules = rules
        self._loading = loading
        self._processor: MultimodalProcessor | None = None
        self._datasets: dict[str, ManifestDataset] = {}
        self._lengths: list[int] | None = None

    @property
    def processor(self) -> MultimodalProcessor:
        """The processor, read from its folder at first use."""
        if self._processor is None:
            self._processor = LlamaVidProcessor.from_pretrained(self._processor_folder)
        return self._processor

    @property
    def manifest_hashes(self) -> dict[str, str]:
        """SHA-256 of every manifest read so far, by path, for the run record."""
        manifests = [manifest for dataset in self._datasets.values() for manifest in dataset.manifests]
        return {str(manifest.path): manifest.sha256 for manifest in manifests}

    def setup(self, stage: str) -> None:
        """Read and check the manifests of a stage (``fit``, ``validate``, ``test`` or ``predict``).

        Raises:
            UserError: a manifest is missing or broken.
        """
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for split in splits:
            if self._paths[split]:
                self._dataset(split)

    def dataset(self, split: str) -> ManifestDataset:
        """The data set of ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Raises:
            UserError: the config names no manifest for it.
        """
        return self._dataset(split)

    def counts(self) -> dict[str, DatasetCounts]:
        """Rows skipped and cache hits so far on this rank, by split."""
        return {split: dataset.counts() for split, dataset in self._datasets.items()}

    def train_dataloader(self) -> ManifestLoader:
        """Shuffled batches, the same number on every rank."""
        dataset = self._dataset("train")
        loading = self._loading
        if loading.group_by_length and self._lengths is None:
            self._lengths = _lengths(dataset)
        order = EpochOrder(
            source_sizes=tuple(len(manifest) for manifest in dataset.manifests),
            weights=self._weights,
            seed=loading.seed,
            shuffle=True,
            batch_size=loading.batch_size,
            world_size=self._world_size,
            lengths=self._lengths,
        )
        return self._loader(dataset, order, BatchCollator(self.processor))

    def val_dataloader(self) -> ManifestLoader | list[ManifestLoader]:
        """Every validation row once, in order; no loader when no manifest is named."""
        return self._eval_loader("val") if self._paths["val"] else []

    def test_dataloader(self) -> ManifestLoader:
        """Every test row once, in order."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> ManifestLoader:
        """Every test row once, in order, open for an answer and padded on the left."""
        return self._eval_loader("predict")

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else int(self.trainer.global_rank)

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else int(self.trainer.world_size)

    def _dataset(self, split: str) -> ManifestDataset:
        if split not in self._datasets:
            paths = self._paths["test" if split == "predict" else split]
            if not paths:
                key = "test" if split == "predict" else split
                raise UserError(f"the config names no manifest for '{split}'; set data.{key}")
            self._datasets[split] = ManifestDataset(
                [self._read(path) for path in paths],
                self.processor,
                self.template,
                conversation=self.conversation,
                media=self._media,
                budget=self._budget,
                bad_samples=self._bad_samples,
                for_generation=split == "predict",
                seed=self._loading.seed,
            )
        return self._datasets[split]

    def _read(self, path: str) -> Manifest:
        manifest = read_manifest(Path(path), self._rules)
        log.info("%s: %d rows, sha256 %s", path, len(manifest), manifest.sha256[:12])
        return manifest

    def _eval_loader(self, split: str) -> ManifestLoader:
        dataset = self._dataset(split)
        order = EpochOrder(
            source_sizes=tuple(len(manifest) for manifest in dataset.manifests),
            weights=(1.0,) * len(dataset.manifests),
            seed=self._loading.seed,
            shuffle=False,
            batch_size=self._loading.eval_batch_size,
            world_size=self._world_size,
            even_ranks=False,
        )
        side: PaddingSide = "left" if split == "predict" else "right"
        return self._loader(dataset, order, BatchCollator(self.processor, side))

    def _loader(self, dataset: ManifestDataset, order: EpochOrder, collator: BatchCollator) -> ManifestLoader:
        return make_loader(
            dataset,
            order,
            collator,
            rank=self._rank,
            num_workers=self._loading.num_workers,
            pin_memory=self._loading.pin_memory,
        )


def _sources(paths: str | Sequence[str | ManifestSource] | None) -> list[ManifestSource]:
    listed = [paths] if isinstance(paths, str) else list(paths or ())
    return [ManifestSource(path=path) if isinstance(path, str) else path for path in listed]


def _lengths(dataset: ManifestDataset) -> list[int]:
    log.info("measuring the length of %d rows for group_by_length", len(dataset))
    return [dataset.plan(index).tokens.total for index in range(len(dataset))]
