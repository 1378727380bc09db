"""``ManifestDataModule``: manifests to batches for Lightning. Its arguments are the keys of ``data:`` in a config."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from longvid_train.data.budget import TokenBudget
from longvid_train.data.collate import PaddingSide
from longvid_train.data.conversation import ConversationOptions
from longvid_train.data.dataset import BadSamples, DatasetCounts, ManifestDataset
from longvid_train.data.features.source import FeatureSource, preprocessing_settings
from longvid_train.data.loader import BatchCollator, ManifestLoader, make_loader
from longvid_train.data.loading import LoadingOptions, accumulation_steps
from longvid_train.data.manifest import Manifest, ManifestRules, read_manifest
from longvid_train.data.measuring import RowTable, measure, modalities_of
from longvid_train.data.media import MediaOptions
from longvid_train.data.order import IMAGE, TEXT, VIDEO, BatchOrder, RowFacts, RowOrder, Stratum
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import Template, template_by_name
from longvid_train.data.token_order import TokenOrder
from longvid_train.errors import UserError
from longvid_train.models.llama_vid.processing import LlamaVidProcessor
from longvid_train.models.llama_vid.tower_file import tower_sha256

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


class ManifestDataModule(pl.LightningDataModule):
    """Training, validation and test batches from manifests.

    Validation and test visit every row exactly once in file order. Training visits every row as often as its weight
    says; where an epoch's last rows are fewer than the ranks, those are left out. Batches hold labels (teacher forcing)
    in all three; ``predict`` batches are the test rows without their last answer, padded on the left for generation.

    Attributes:
        template: the chat template.
        conversation: how conversations become tokens.
        budget: how rows longer than ``conversation.max_tokens`` are made to fit.
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
        loading: LoadingOptions = LoadingOptions(),  # noqa: B008 - frozen
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
            UserError: the template does not exist, or a row of ``max_tokens`` would fit in no batch.
        """
        super().__init__()
        if loading.max_tokens_per_batch is not None and loading.max_tokens_per_batch < conversation.max_tokens:
            raise UserError(
                f"loading.max_tokens_per_batch is {loading.max_tokens_per_batch}, less than conversation.max_tokens = "
                f"{conversation.max_tokens}: the longest rows would fit in no batch; raise the one or lower the other"
            )
        self._processor_folder = processor
        sources = _sources(train)
        self._paths = {
            "train": [source.path for source in sources],
            "val": [source.path for source in _sources(val)],
            "test": [source.path for source in _sources(test)],
        }
        self._weights = tuple(source.weight for source in sources)
        self.template: Template = template_by_name(template)
        self.conversation = conversation
        self._media = media
        self.budget = budget
        self._bad_samples = bad_samples
        self._rules = rules
        self._loading = loading
        self._processor: MultimodalProcessor | None = None
        self._features: FeatureSource | None = None
        self._datasets: dict[str, ManifestDataset] = {}
        self._table: RowTable | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def processor(self) -> MultimodalProcessor:
        """The processor, read from its folder at first use."""
        if self._processor is None:
            self._processor = LlamaVidProcessor.from_pretrained(self._processor_folder)
        return self._processor

    @property
    def loading(self) -> LoadingOptions:
        """How batches are made."""
        return self._loading

    @property
    def uses_features(self) -> bool:
        """Whether batches hold tower features instead of pixels."""
        return self._media.features is not None

    @property
    def manifest_hashes(self) -> dict[str, str]:
        """SHA-256 of every manifest read so far, by path, for the run record."""
        manifests = [manifest for dataset in self._datasets.values() for manifest in dataset.manifests]
        return {str(manifest.path): manifest.sha256 for manifest in manifests}

    def setup(self, stage: str) -> None:
        """Read and check the manifests of a stage (``fit``, ``validate``, ``test`` or ``predict``); for ``fit``, divide
        the global batch.

        Raises:
            UserError: a manifest is missing or broken, or the global batch cannot be divided.
        """
        if stage == "fit":
            self._divide_global_batch()
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
        collator = BatchCollator(self.processor, packed=self._loading.packing)
        loader = self._loader(
            dataset, self._train_order(dataset), collator, rank=self._replicas[0], epochs=self._epochs
        )
        if self._resumed is not None:
            loader.load_state_dict(self._resumed)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Where the training loader stands.

        Lightning saves that of the loader too, but does not restore it when ``estimated_stepping_batches`` was read
        before (Lightning issue 20550): the loader then exists already. This state is known before any loader is made.
        """
        loader = None if self.trainer is None else self.trainer.train_dataloader
        return {"train": loader.state_dict()} if isinstance(loader, ManifestLoader) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the next training loader the state it was saved with; it refuses another order."""
        self._resumed = state_dict["train"]

    def teardown(self, stage: str) -> None:
        """Forget where a resumed run started."""
        if stage == "fit":
            self._resumed = None

    def row_table(self) -> RowTable:
        """What every training row costs, after the token budget; measured at first use.

        Raises:
            UserError: a row cannot be used and ``bad_samples`` does not leave it out.
        """
        if self._table is None:
            self._table = measure(self._dataset("train"))
        return self._table

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
    def _replicas(self) -> tuple[int, int]:
        """Of the training rows: which share is this rank's, and how many shares there are.

        Ranks that divide one sequence among them (sequence parallelism) share their rows; the strategy knows.
        """
        shares = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (0, 1) if shares is None else (int(shares["rank"]), int(shares["num_replicas"]))

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
            manifests = [self._read(path) for path in paths]
            if split != "train":
                self._check_rows_for_all("test" if split == "predict" else split, sum(map(len, manifests)))
            self._datasets[split] = ManifestDataset(
                manifests,
                self.processor,
                self.template,
                conversation=self.conversation,
                media=self._media,
                features=self._checked_features(manifests),
                budget=self.budget,
                bad_samples=self._bad_samples,
                for_generation=split == "predict",
                seed=self._loading.seed,
            )
        return self._datasets[split]

    def _check_rows_for_all(self, key: str, rows: int) -> None:
        """Refuse held-out rows that not every rank has one of: the others would wait for it."""
        if rows < self._world_size:
            raise UserError(
                f"data.{key} has {rows} row{'' if rows == 1 else 's'} and the run has {self._world_size} processes, "
                f"each of which needs at least one; use at most {rows} processes, or hold out more rows"
            )

    def _checked_features(self, manifests: Sequence[Manifest]) -> FeatureSource | None:
        """The feature cache, opened once, after checking that it holds all media of ``manifests``."""
        media = self._media
        if media.features is None:
            return None
        if self._features is None:
            preprocessing = preprocessing_settings(
                self.processor, reader=media.reader, shortest_edge=media.shortest_edge, exact=media.exact
            )
            self._features = FeatureSource(
                Path(media.features),
                tower=tower_sha256(Path(self._processor_folder)),
                preprocessing=preprocessing,
                sampling=media.sampling,
                rehash=media.rehash_files,
            )
            self._features.check_context(self.processor, allow_pooled=media.allow_pooled_context)
        for manifest in manifests:
            self._features.check_manifest(manifest, self.conversation)
        return self._features

    def _read(self, path: str) -> Manifest:
        manifest = read_manifest(Path(path), self._rules)
        log.info("%s: %d rows, sha256 %s", path, len(manifest), manifest.sha256[:12])
        return manifest

    def _divide_global_batch(self) -> None:
        """Set the trainer's accumulation so that an optimiser step has ``global_batch_size`` rows."""
        loading, trainer = self._loading, self.trainer
        if loading.global_batch_size is None or trainer is None:
            return
        _, replicas = self._replicas
        steps = accumulation_steps(loading.global_batch_size, loading.batch_size, replicas)
        if trainer.accumulate_grad_batches not in (1, steps):
            raise UserError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but loading.global_batch_size "
                f"{loading.global_batch_size} of batches of {loading.batch_size} on {replicas} ranks needs "
                f"{steps}; remove accumulate_grad_batches or global_batch_size"
            )
        trainer.accumulate_grad_batches = steps

    def _train_order(self, dataset: ManifestDataset) -> BatchOrder:
        loading, (_, replicas) = self._loading, self._replicas
        if loading.max_tokens_per_batch is not None:
            facts = self.row_table().facts()
            return TokenOrder(
                strata=self._strata(dataset, facts),
                seed=loading.seed,
                facts=facts,
                max_tokens=loading.max_tokens_per_batch,
                packed=loading.packing,
                by_modality=loading.group_by_modality,
                world_size=replicas,
            )
        known = self._row_facts(dataset)
        return RowOrder(
            strata=self._strata(dataset, known),
            seed=loading.seed,
            shuffle=True,
            batch_size=loading.batch_size,
            world_size=replicas,
            facts=known,
            by_length=loading.group_by_length,
            by_modality=loading.group_by_modality,
        )

    def _row_facts(self, dataset: ManifestDataset) -> RowFacts | None:
        """Lengths and modalities if they decide the order; modalities alone cost no probing."""
        if self._loading.group_by_length:
            return self.row_table().facts()
        if self._loading.group_by_modality or self._loading.modality_weights.decide():
            return RowFacts((0,) * len(dataset), modalities_of(dataset))
        return None

    def _strata(self, dataset: ManifestDataset, facts: RowFacts | None) -> tuple[Stratum, ...]:
        """Usable rows of each manifest, by modality where modalities have weights of their own."""
        strata: list[Stratum] = []
        first = 0
        for manifest, weight in zip(dataset.manifests, self._weights, strict=True):
            rows: Sequence[int] = range(first, first + len(manifest))
            first += len(manifest)
            if self._table is not None:
                rows = [row for row in rows if self._table.usable[row]]
            weights = self._loading.modality_weights
            if facts is None or not weights.decide():
                strata.append(Stratum(rows, weight))
                continue
            for kind in (TEXT, IMAGE, VIDEO):
                strata.append(
                    Stratum([row for row in rows if facts.modalities[row] == kind], weight * weights.of(kind))
                )
        return tuple(strata)

    def _eval_loader(self, split: str) -> ManifestLoader:
        dataset = self._dataset(split)
        order = RowOrder(
            strata=(Stratum(range(len(dataset))),),
            seed=self._loading.seed,
            shuffle=False,
            batch_size=self._loading.eval_batch_size,
            world_size=self._world_size,
            even_ranks=False,
        )
        side: PaddingSide = "left" if split == "predict" else "right"
        return self._loader(dataset, order, BatchCollator(self.processor, side), rank=self._rank)

    @property
    def _epochs(self) -> int | None:
        """Epochs of training; None is without end."""
        epochs = 0 if self.trainer is None else self.trainer.max_epochs
        return None if epochs in (None, -1) else epochs

    @property
    def _pins(self) -> bool:
        """Whether batches are handed out in page-locked memory."""
        if self._loading.pin_memory is not None:
            return self._loading.pin_memory
        return self.trainer is not None and bool(self.trainer.strategy.root_device.type == "cuda")

    def _loader(
        self, dataset: ManifestDataset, order: BatchOrder, collator: BatchCollator, *, rank: int, epochs: int | None = 0
    ) -> ManifestLoader:
        return make_loader(
            dataset,
            order,
            collator,
            rank=rank,
            num_workers=self._loading.num_workers,
            prefetch_factor=self._loading.prefetch_factor,
            pin_memory=self._pins,
            epochs=epochs,
        )


def _sources(paths: str | Sequence[str | ManifestSource] | None) -> list[ManifestSource]:
    listed = [paths] if isinstance(paths, str) else list(paths or ())
    return [ManifestSource(path=path) if isinstance(path, str) else path for path in listed]
