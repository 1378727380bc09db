"""Batches in an order that is a pure function of (seed, epoch, rank), and a loader that resumes mid-epoch.

Because the order is pure, the whole state of a loader is (epoch, batches consumed): nothing of the workers need be
saved, rows that workers had read ahead are read again, and a run may resume with another number of workers. Lightning
saves and restores that state with its checkpoints (``state_dict`` / ``load_state_dict`` of a train loader). A
stateless loader would replay the epoch from batch 0.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from longvid_train.data.collate import PaddingSide, collate
from longvid_train.data.conversation import EncodedSample
from longvid_train.data.dataset import MAX_WORKERS, BatchFailure, Draw, ManifestDataset
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.errors import UserError
from longvid_train.types import Batch

GROUP_BATCHES = 32
"""Batches that are sorted by length together: large enough for even lengths, small enough to keep the order random."""


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """Which rows an epoch visits, in which order, on which rank.

    Attributes:
        source_sizes: rows of each manifest.
        weights: how often an epoch visits each manifest: 2.0 is every row twice, 0.5 a new random half each epoch.
        seed: decides the order together with the epoch.
        shuffle: False keeps the manifests' order.
        batch_size: rows of a batch on one rank.
        world_size: number of ranks.
        even_ranks: True leaves out the last ``rows % world_size`` rows of the epoch's order, so that all ranks take
            the same number of steps; False visits every row and lets ranks differ by one row.
        lengths: tokens of each row, to put rows of like length into a batch; None does not group.
    """

    source_sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int
    shuffle: bool
    batch_size: int
    world_size: int = 1
    even_ranks: bool = True
    lengths: Sequence[int] | None = None

    @property
    def epoch_size(self) -> int:
        """Rows an epoch visits over all ranks."""
        visits = sum(round(size * weight) for size, weight in zip(self.source_sizes, self.weights, strict=True))
        return visits - visits % self.world_size if self.even_ranks else visits

    def rank_size(self, rank: int) -> int:
        """Rows an epoch visits on one rank."""
        return len(range(rank, self.epoch_size, self.world_size))

    def rows(self, epoch: int, rank: int) -> list[int]:
        """Rows of one rank in order; consecutive ``batch_size`` rows are a batch. Ranks share no visit."""
        draws = random.Random(f"{self.seed}:{epoch}")
        visits = self._visits(draws)
        if self.shuffle:
            draws.shuffle(visits)
        visits = visits[: self.epoch_size]
        if self.lengths is not None:
            visits = self._grouped(visits, self.lengths, draws)
        return visits[rank :: self.world_size]

    def _visits(self, draws: random.Random) -> list[int]:
        """Row numbers with each manifest repeated or thinned by its weight."""
        visits: list[int] = []
        first = 0
        for size, weight in zip(self.source_sizes, self.weights, strict=True):
            whole, rest = divmod(round(size * weight), size)
            visits.extend(list(range(first, first + size)) * whole)
            visits.extend(sorted(draws.sample(range(first, first + size), rest)))
            first += size
        return visits

    def _grouped(self, visits: list[int], lengths: Sequence[int], draws: random.Random) -> list[int]:
        """Sort groups of batches by length, then shuffle whole batches; a shorter last batch stays last."""
        global_batch = self.batch_size * self.world_size
        full = len(visits) - len(visits) % global_batch
        batches: list[list[int]] = []
        for start in range(0, full, global_batch * GROUP_BATCHES):
            group = sorted(
                visits[start : min(start + global_batch * GROUP_BATCHES, full)], key=lambda row: lengths[row]
            )
            batches.extend(group[at : at + global_batch] for at in range(0, len(group), global_batch))
        if self.shuffle:
            draws.shuffle(batches)
        return [row for batch in batches for row in batch] + visits[full:]


class EpochSampler(DistributedSampler[Draw]):
    """Yields `Draw`s of one rank. A ``DistributedSampler``, so that Lightning sets its epoch and does not replace it.

    Attributes:
        order: the pure order.
        first_row: rows the next iteration leaves out (a resumed epoch); back to 0 afterwards.
    """

    def __init__(self, dataset: ManifestDataset, order: EpochOrder, rank: int) -> None:
        """Sample ``order`` for ``rank``."""
        super().__init__(dataset, num_replicas=order.world_size, rank=rank, shuffle=order.shuffle, seed=order.seed)
        self.order = order
        self.first_row = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a new one starts at its first row."""
        if epoch != self.epoch:
            self.first_row = 0
        super().set_epoch(epoch)

    def __iter__(self) -> Iterator[Draw]:
        first_row, self.first_row = self.first_row, 0
        epoch = self.epoch
        return (Draw(row, epoch) for row in self.order.rows(epoch, self.rank)[first_row:])

    def __len__(self) -> int:
        return self.order.rank_size(self.rank)


class ManifestLoader(DataLoader[Any]):
    """A ``DataLoader`` of `Batch`es that resumes mid-epoch and raises a worker's failure as one line.

    Make it with `make_loader`, which gives it an `EpochSampler`.
    """

    _epoch = 0
    _consumed = 0

    def __iter__(self) -> Any:
        sampler = self._epoch_sampler()
        self._epoch = sampler.epoch
        self._consumed = sampler.first_row // sampler.order.batch_size
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
        sampler = self._epoch_sampler()
        finished = state["batches"] >= len(self)
        sampler.set_epoch(state["epoch"] + 1 if finished else state["epoch"])
        sampler.first_row = 0 if finished else state["batches"] * sampler.order.batch_size
        self._epoch, self._consumed = sampler.epoch, sampler.first_row // sampler.order.batch_size

    def _checked(self, batches: Iterator[Batch | BatchFailure | None]) -> Iterator[Batch]:
        """Count batches, raise failures, and leave out a batch whose rows were all skipped."""
        for batch in batches:
            if isinstance(batch, BatchFailure):
                raise UserError(batch.message)
            self._consumed += 1
            if batch is not None:
                yield batch
            elif self._epoch_sampler().order.world_size > 1:
                raise UserError(
                    "every row of a batch was skipped as bad (the log names them), and the other ranks would wait for "
                    "this one forever; remove those rows from the manifest or raise batch_size"
                )

    def _epoch_sampler(self) -> EpochSampler:
        assert isinstance(self.sampler, EpochSampler), "make a ManifestLoader with make_loader"
        return self.sampler

    def _order_record(self) -> dict[str, Any]:
        assert isinstance(self.dataset, ManifestDataset)
        order = self._epoch_sampler().order
        return {
            "manifests": [manifest.sha256 for manifest in self.dataset.manifests],
            "weights": list(order.weights),
            "seed": order.seed,
            "shuffle": order.shuffle,
            "batch_size": order.batch_size,
            "world_size": order.world_size,
            "group_by_length": order.lengths is not None,
        }


@dataclass(frozen=True)
class BatchCollator:
    """`collate` with its processor, as a picklable function; None for a batch whose rows were all skipped."""

    processor: MultimodalProcessor
    padding_side: PaddingSide = "right"

    def __call__(self, samples: list[EncodedSample] | BatchFailure) -> Batch | BatchFailure | None:
        """Collate what ``ManifestDataset.__getitems__`` returned."""
        if isinstance(samples, BatchFailure):
            return samples
        return collate(samples, self.processor, self.padding_side) if samples else None


def make_loader(
    dataset: ManifestDataset,
    order: EpochOrder,
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
    if order.rank_size(rank) == 0:
        raise UserError(
            f"an epoch has {order.epoch_size} rows for {order.world_size} ranks, so rank {rank} would have none; use "
            "fewer ranks or larger manifests"
        )
    return ManifestLoader(
        dataset,
        sampler=EpochSampler(dataset, order, rank),
        batch_size=order.batch_size,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
