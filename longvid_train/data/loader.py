"""Batches in an order that is a pure function of (seed, epoch, rank), and a loader that resumes mid-epoch.

Because the order is pure, the whole state of a loader is (epoch, batches consumed): nothing of the workers need be
saved, rows that workers had read ahead are read again, and a run may resume with another number of workers. Lightning
saves and restores that state with its checkpoints (``state_dict`` / ``load_state_dict`` of a train loader). A
stateless loader would replay the epoch from batch 0. docs/data.md says what torchdata's loader was measured to lack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from longvid_train.data.collate import PaddingSide, collate, pack
from longvid_train.data.conversation import EncodedSample
from longvid_train.data.dataset import MAX_WORKERS, BatchFailure, Draw, ManifestDataset
from longvid_train.data.order import BatchOrder
from longvid_train.data.processing import MultimodalProcessor
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


class BatchSampler(DistributedSampler[Any]):
    """Yields one rank's batches as lists of `Draw`s.

    A ``DistributedSampler``, so that Lightning sets its epoch and does not replace it.

    Attributes:
        order: the pure order.
        first_batch: batches the next iteration leaves out (a resumed epoch); back to 0 afterwards.
    """

    def __init__(self, dataset: BatchRows, order: BatchOrder, rank: int) -> None:
        """Sample ``order`` for ``rank``."""
        super().__init__(dataset, num_replicas=order.world_size, rank=rank, shuffle=order.shuffle, seed=order.seed)
        self.order = order
        self.first_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a new one starts at its first batch."""
        if epoch != self.epoch:
            self.first_batch = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Draw]]:
        # A generator: with workers, a loader makes two iterators and uses the second.
        first, self.first_batch = self.first_batch, 0
        epoch = self.epoch
        for batch in self.order.batches(epoch, self.rank)[first:]:
            yield [Draw(row, epoch) for row in batch]

    def __len__(self) -> int:
        return self.order.batch_count(self.rank)


class ManifestLoader(DataLoader[Any]):
    """A ``DataLoader`` of `Batch`es that resumes mid-epoch and raises a worker's failure as one line.

    Make it with `make_loader`, which gives it a `BatchSampler`.
    """

    _epoch = 0
    _consumed = 0

    def __iter__(self) -> Any:
        sampler = self._batch_sampler()
        self._epoch = sampler.epoch
        self._consumed = sampler.first_batch
        return self._checked(super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches consumed in it, and the order they belong to. The same on every rank."""
        return {"epoch": self._epoch, "batches": self._consumed, "order": self._order_record()}

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
        sampler = self._batch_sampler()
        finished = state["batches"] >= len(self)
        sampler.set_epoch(state["epoch"] + 1 if finished else state["epoch"])
        sampler.first_batch = 0 if finished else state["batches"]
        self._epoch, self._consumed = sampler.epoch, sampler.first_batch

    def _checked(self, batches: Iterator[Batch | BatchFailure | None]) -> Iterator[Batch]:
        """Count batches, raise failures, and leave out a batch whose rows were all skipped."""
        for batch in batches:
            if isinstance(batch, BatchFailure):
                raise UserError(batch.message)
            self._consumed += 1
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
    pin_memory: bool = False,
) -> ManifestLoader:
    """Build the loader of one rank.

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
        sampler=BatchSampler(rows, order, rank),
        batch_size=None,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
