"""Batches in an order that is a pure function of (seed, epoch, rank), and a loader that resumes mid-epoch.

The loader is torchdata's ``StatefulDataLoader``: it knows how far the batches that training got are behind those that
workers were asked for. Because the order is pure, that place (epoch, batches consumed) is all that a resumed run
needs: rows that workers had read ahead are read again, and a run may resume with another number of workers. Lightning
saves and restores the state with its checkpoints (``state_dict`` / ``load_state_dict`` of a train loader).
docs/data.md says what is added to torchdata's loader, and why.

A training loader reads on past the end of an epoch: its workers live as long as the run, keep their decoded frames, and
have the first batches of the next epoch ready when it begins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import Dataset, DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from longvid_train.data.collate import PaddingSide, collate, pack
from longvid_train.data.conversation import EncodedSample
from longvid_train.data.dataset import MAX_WORKERS, BatchFailure, Draw, ManifestDataset
from longvid_train.data.order import BatchOrder
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.worker_signals import ignore_foreign_sigterm
from longvid_train.errors import UserError
from longvid_train.types import Batch


class BatchRows(Dataset[list[EncodedSample] | BatchFailure]):
    """A data set whose item is a whole batch, named by its draws: batches need not have one size.

    Attributes:
        rows: where the rows come from.
    """

    def __init__(self, rows: ManifestDataset) -> None:
        """Read batches from ``rows``."""
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draws: Sequence[Draw]) -> list[EncodedSample] | BatchFailure:
        """Rows of one batch; see `ManifestDataset.__getitems__`."""
        return self.rows.__getitems__(draws)


class Place(NamedTuple):
    """Where an order stands: the epoch, and the batches behind it in that epoch."""

    epoch: int
    batches: int


class BatchSampler(DistributedSampler[Any]):
    """Yields one rank's batches as lists of `Draw`s.

    A ``DistributedSampler``, so that Lightning sets its epoch and does not replace it; stateful, so that torchdata
    notes its place with every batch it asks workers for.

    Attributes:
        order: the pure order.
        start: where the next pass begins.
    """

    def __init__(self, dataset: BatchRows, order: BatchOrder, rank: int, epochs: int | None) -> None:
        """Sample ``order`` for ``rank``; see `make_loader` for ``epochs``."""
        super().__init__(dataset, num_replicas=order.world_size, rank=rank, shuffle=order.shuffle, seed=order.seed)
        self.order = order
        self.start = Place(0, 0)
        self._drawn = Place(0, 0)
        self._epochs = epochs

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a new one starts at its first batch."""
        if epoch != self.start.epoch:
            self.start = Place(epoch, 0)

    def behind(self, place: Place) -> Place:
        """``place``, or the start of the next epoch where it is the end of one."""
        return Place(place.epoch + 1, 0) if place.batches >= len(self) else place

    def is_read_ahead(self, epoch: int) -> bool:
        """Whether batches of ``epoch`` are drawn when those of the epoch before it are."""
        return self._epochs is None or epoch < self._epochs

    def state_dict(self) -> dict[str, int]:
        """Epoch and batches drawn in it."""
        return self._drawn._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration behind the batches drawn; after a whole epoch, at the start of the next."""
        self.start = self._drawn = self.behind(Place(state["epoch"], state["batches"]))

    def __iter__(self) -> Iterator[list[Draw]]:
        self._drawn = self.start
        return self._draws(self.start)

    def __len__(self) -> int:
        return self.order.batch_count(self.rank)

    def _draws(self, place: Place) -> Iterator[list[Draw]]:
        """Epoch after epoch, as long as those are read ahead."""
        while True:
            for batch in self.order.batches(place.epoch, self.rank)[place.batches :]:
                place = Place(place.epoch, place.batches + 1)
                self._drawn = place
                yield [Draw(row, place.epoch) for row in batch]
            place = Place(place.epoch + 1, 0)
            if not self.is_read_ahead(place.epoch):
                return


class ManifestLoader(StatefulDataLoader[Any]):
    """A ``StatefulDataLoader`` of `Batch`es whose state says which order it belongs to and suits any number of workers.

    One pass over it is one epoch. The next pass goes on with what workers have read ahead if it begins where the last
    one ended; otherwise workers start anew. A worker's failure is raised as one line. Make it with `make_loader`,
    which gives it a `BatchSampler`.
    """

    _at: Place | None = None
    """Where the running iterator stands for whoever consumes it; None if it cannot be gone on with."""

    def __iter__(self) -> Any:
        sampler = self._batch_sampler()
        if self._iterator is None or self._at != sampler.start:
            self._at = sampler.start
            super().__iter__()
        return self._checked(self._pass())

    def state_dict(self) -> dict[str, Any]:
        """``epoch``, ``batches`` consumed in it, and the ``order`` they belong to. The same on every rank."""
        return {**self._place(), "order": self._order_record()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind the batches consumed; after a whole epoch, at the start of the next.

        Raises:
            UserError: the state belongs to another order (manifests, seed, batch size, number of ranks ...).
        """
        for name, value in self._order_record().items():
            if state["order"].get(name) != value:
                raise UserError(
                    f"the checkpoint's data order has {name} = {state['order'].get(name)} and this run has {value}; "
                    "resume with the settings the run was started with, or start a new run from its weights"
                )
        # torchdata's own state can only be loaded with as many workers as it was saved with; the sampler's place can
        # with any. An empty state makes torchdata drop the iterator it has and ask the sampler again.
        super().load_state_dict({})
        self._batch_sampler().load_state_dict(state)

    def _place(self) -> dict[str, int]:
        """The sampler's state behind the last batch consumed, which torchdata keeps while workers read ahead."""
        if self._iterator is None:
            return self._batch_sampler().state_dict()
        state = super().state_dict()
        noted = state["_snapshot"]["_main_snapshot"] if self.num_workers else state
        place: dict[str, int] = noted["_index_sampler_state"]
        return place

    def _pass(self) -> Iterator[Batch | BatchFailure | None]:
        """What is left of the epoch. An iterator that does not read on is run to its end, which ends its workers."""
        sampler, iterator = self._batch_sampler(), self._iterator
        assert self._at is not None and iterator is not None
        epoch, first = self._at
        for number, batch in enumerate(islice(iterator, len(sampler) - first), start=first + 1):
            self._at, sampler.start = self._reached(Place(epoch, number)), Place(epoch, 0)
            yield batch
        if not sampler.is_read_ahead(epoch + 1):
            beyond = next(iterator, None)
            assert beyond is None, "the order has more batches than it says"

    def _reached(self, place: Place) -> Place | None:
        """See ``_at``; told with the last batch, behind which Lightning does not ask for the end of the pass."""
        behind = self._batch_sampler().behind(place)
        goes_on = behind.epoch == place.epoch or self._batch_sampler().is_read_ahead(behind.epoch)
        return behind if goes_on else None

    def _checked(self, batches: Iterator[Batch | BatchFailure | None]) -> Iterator[Batch]:
        """Raise failures, and leave out a batch whose rows were all skipped."""
        for batch in batches:
            if isinstance(batch, BatchFailure):
                raise UserError(batch.message)
            if batch is not None:
                yield batch
            elif self._batch_sampler().order.world_size > 1:
                raise UserError(
                    "every row of a batch was skipped as bad (the log names them), and the other ranks would wait for "
                    "this one forever; remove those rows from the manifest or raise batch_size"
                )

    def _batch_sampler(self) -> BatchSampler:
        assert isinstance(self.sampler, BatchSampler), "make a ManifestLoader with make_loader"
        return self.sampler

    def _order_record(self) -> dict[str, Any]:
        assert isinstance(self.dataset, BatchRows)
        manifests = [manifest.sha256 for manifest in self.dataset.rows.manifests]
        return {"manifests": manifests, **self._batch_sampler().order.record()}


@dataclass(frozen=True)
class BatchCollator:
    """`collate` or `pack` with its processor, as a picklable function; None for a batch whose rows were all skipped."""

    processor: MultimodalProcessor
    padding_side: PaddingSide = "right"
    packed: bool = False

    def __call__(self, samples: list[EncodedSample] | BatchFailure) -> Batch | BatchFailure | None:
        """Collate what ``ManifestDataset.__getitems__`` returned."""
        if isinstance(samples, BatchFailure):
            return samples
        if not samples:
            return None
        return pack(samples, self.processor) if self.packed else collate(samples, self.processor, self.padding_side)


def make_loader(
    dataset: ManifestDataset,
    order: BatchOrder,
    collator: BatchCollator,
    *,
    rank: int = 0,
    num_workers: int = 0,
    prefetch_factor: int = 2,
    pin_memory: bool = False,
    epochs: int | None = 0,
) -> ManifestLoader:
    """Build the loader of one rank.

    Args:
        dataset: the rows.
        order: of their batches.
        collator: joins a batch's rows.
        rank: whose batches.
        num_workers: processes that read ahead; 0 reads in this one, when a batch is asked for.
        prefetch_factor: batches that each worker reads ahead.
        pin_memory: hand out batches in page-locked memory.
        epochs: how many epochs follow each other: batches of the next of them are read ahead at an epoch's end. None is
            without end, 0 ends the workers with each pass.

    Raises:
        UserError: an epoch would hold no row on this rank, or there are too many workers.
    """
    if num_workers > MAX_WORKERS:
        raise UserError(f"num_workers is {num_workers}; at most {MAX_WORKERS} are supported")
    if order.batch_count(rank) == 0:
        raise UserError(
            f"the manifests have too few usable rows for {order.world_size} ranks: rank {rank} would have none; use "
            "fewer ranks or larger manifests"
        )
    rows = BatchRows(dataset)
    return ManifestLoader(
        rows,
        sampler=BatchSampler(rows, order, rank, epochs),
        batch_size=None,
        collate_fn=collator,
        num_workers=num_workers,
        worker_init_fn=ignore_foreign_sigterm,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor if num_workers else None,
    )
