"""Which rows form which batch of an epoch, on which rank: pure functions of seed, epoch, rank and world size.

An epoch is a list of *global batches*, one an optimiser micro-step, each split over the ranks. Two ways to make them:
`RowOrder` counts rows, ``TokenOrder`` (``token_order.py``) counts tokens. Both visit every row of a stratum
``weight`` times. All ranks take the same number of steps in training: where the last rows of an epoch are fewer than
the ranks, those (at most ``world_size - 1`` rows) are left out.
"""

import hashlib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

GROUP_BATCHES = 32
"""Batches that are sorted by length together: large enough for even lengths, small enough to keep the order random."""


class BatchOrder(Protocol):
    """What a loader needs of an order."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def shuffle(self) -> bool:
        """Whether epochs differ."""

    @property
    def seed(self) -> int:
        """What decides the order together with the epoch."""

    def batch_count(self, rank: int) -> int:
        """Batches of every epoch on one rank."""

    def batches(self, epoch: int, rank: int) -> list[list[int]]:
        """Row numbers of each batch of one rank; ranks share no visit."""

    def record(self) -> dict[str, Any]:
        """What decides the order, for checkpoints: equal records mean equal orders."""


@dataclass(frozen=True)
class Stratum:
    """Rows that are visited equally often.

    Attributes:
        rows: their numbers.
        weight: how often an epoch visits them: 2.0 is every row twice, 0.5 a new random half each epoch.
    """

    rows: Sequence[int]
    weight: float = 1.0

    @property
    def visit_count(self) -> int:
        """Visits of an epoch."""
        return round(len(self.rows) * self.weight)

    def visits(self, draws: random.Random) -> list[int]:
        """Row numbers of an epoch, each as often as it is visited, in the order of ``rows``."""
        whole, rest = divmod(self.visit_count, max(1, len(self.rows)))
        return list(self.rows) * whole + sorted(draws.sample(self.rows, rest))


@dataclass(frozen=True)
class RowFacts:
    """What is known of every row before decoding; rows that cannot be used hold 0.

    Attributes:
        lengths: tokens of each row.
        modalities: ``TEXT``, ``IMAGE`` or ``VIDEO`` of each row.
    """

    lengths: Sequence[int]
    modalities: Sequence[int]

    def digest(self) -> str:
        """SHA-256 over all numbers."""
        return hashlib.sha256(array("q", [*self.lengths, *self.modalities]).tobytes()).hexdigest()


TEXT, IMAGE, VIDEO = range(3)


@dataclass(frozen=True, kw_only=True)
class RowOrder:
    """Batches of equally many rows.

    Attributes:
        strata: the rows and how often an epoch visits them.
        seed: decides the order together with the epoch.
        shuffle: False keeps the order of the strata.
        batch_size: rows of a batch on one rank.
        world_size: number of ranks.
        even_ranks: True gives all ranks the same number of batches (training); False visits every row, and ranks may
            differ by one batch.
        facts: of every row, to group by; None does not group.
        by_length: put rows of like length into a batch.
        by_modality: put rows of one modality into a batch as far as their numbers allow; what is left over is mixed.
    """

    strata: tuple[Stratum, ...]
    seed: int
    shuffle: bool
    batch_size: int
    world_size: int = 1
    even_ranks: bool = True
    facts: RowFacts | None = None
    by_length: bool = False
    by_modality: bool = False

    def batch_count(self, rank: int) -> int:
        """Batches of every epoch on one rank."""
        rows = sum(stratum.visit_count for stratum in self.strata)
        full, rest = divmod(rows, self.batch_size * self.world_size)
        return full + bool(self._rest_of_rank(range(rest), rank))

    def batches(self, epoch: int, rank: int) -> list[list[int]]:
        """Row numbers of each batch of one rank."""
        draws = random.Random(f"{self.seed}:{epoch}")
        visits = [row for stratum in self.strata for row in stratum.visits(draws)]
        if self.shuffle:
            draws.shuffle(visits)
        size = self.batch_size * self.world_size
        full, rest = self._global_batches(visits, size, draws)
        own = [batch[rank :: self.world_size] for batch in full]
        last = list(self._rest_of_rank(rest, rank))
        return [*own, last] if last else own

    def record(self) -> dict[str, Any]:
        """What decides the order."""
        return {
            "weights": [stratum.weight for stratum in self.strata],
            "seed": self.seed,
            "shuffle": self.shuffle,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "group_by_length": self.by_length,
            "group_by_modality": self.by_modality,
            "lengths": None if self.facts is None else self.facts.digest(),
        }

    def _rest_of_rank(self, rest: Sequence[int], rank: int) -> Sequence[int]:
        if self.even_ranks and len(rest) < self.world_size:
            return ()
        return rest[rank :: self.world_size]

    def _global_batches(
        self, visits: list[int], size: int, draws: random.Random
    ) -> tuple[list[list[int]], Sequence[int]]:
        """Full global batches in random order (if shuffled), and the rows left over."""
        full: list[list[int]] = []
        mixed: list[int] = []
        for rows in self._groups(visits):
            whole = len(rows) - len(rows) % size
            full.extend(self._cut(rows[:whole], size))
            mixed.extend(rows[whole:])
        whole = len(mixed) - len(mixed) % size
        full.extend(self._cut(mixed[:whole], size))
        if self.shuffle and self.facts is not None:
            draws.shuffle(full)
        return full, mixed[whole:]

    def _groups(self, visits: list[int]) -> list[list[int]]:
        if self.facts is None or not self.by_modality:
            return [visits]
        return list(split_by_modality(visits, self.facts).values())

    def _cut(self, rows: list[int], size: int) -> list[list[int]]:
        """Consecutive global batches, sorted by length within windows of `GROUP_BATCHES`."""
        if self.facts is not None and self.by_length:
            lengths, window = self.facts.lengths, size * GROUP_BATCHES
            rows = [
                row
                for start in range(0, len(rows), window)
                for row in sorted(rows[start : start + window], key=lambda row: lengths[row])
            ]
        return [rows[start : start + size] for start in range(0, len(rows), size)]


def split_by_modality(visits: Sequence[int], facts: RowFacts) -> dict[int, list[int]]:
    """Visits of each modality, in their order."""
    groups: dict[int, list[int]] = {TEXT: [], IMAGE: [], VIDEO: []}
    for row in visits:
        groups[facts.modalities[row]].append(row)
    return groups
