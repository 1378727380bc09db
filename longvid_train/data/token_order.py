"""Batches of at most so many tokens, padded or packed.

The batches are composed once, from the seed alone; an epoch shuffles them. So every epoch has the same number of steps,
which schedules and resuming need, and rows of like length stay together. The whole visits of all strata are composed
together; a stratum's fraction (0.5 of weight 2.5) is composed apart, and each epoch takes a new random part of those
steps.
"""

import hashlib
import random
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any

from longvid_train.data.order import RowFacts, Stratum, split_by_modality

WINDOW_ROWS = 8192
"""Rows that are sorted and packed together."""

Step = list[list[int]]
"""One batch for each rank."""


@dataclass(frozen=True, kw_only=True)
class TokenOrder:
    """Batches of at most ``max_tokens`` tokens on each rank.

    Attributes:
        strata: the rows and how often an epoch visits them.
        seed: decides the batches, and their order together with the epoch.
        facts: of every row.
        max_tokens: tokens of a batch: of its padded rectangle, or without padding if ``packed``. No row may be longer.
        packed: rows of a batch will be packed into one sequence.
        by_modality: batches hold rows of one modality.
        world_size: number of ranks.
    """

    strata: tuple[Stratum, ...]
    seed: int
    facts: RowFacts
    max_tokens: int
    packed: bool
    by_modality: bool
    world_size: int = 1

    @property
    def shuffle(self) -> bool:
        """Epochs differ."""
        return True

    def batch_count(self, rank: int) -> int:
        """Batches of every epoch on one rank; the same on all."""
        whole, parts = self._composed
        return len(whole) + sum(taken for _, taken in parts)

    def batches(self, epoch: int, rank: int) -> list[list[int]]:
        """Row numbers of each batch of one rank."""
        draws = random.Random(f"{self.seed}:{epoch}")
        whole, parts = self._composed
        steps = list(whole)
        for part, taken in parts:
            steps += draws.sample(part, taken)
        draws.shuffle(steps)
        first = [draws.randrange(self.world_size) for _ in steps]
        return [step[(rank + turn) % self.world_size] for step, turn in zip(steps, first, strict=True)]

    def record(self) -> dict[str, Any]:
        """What decides the order."""
        rows = [array("q", stratum.rows).tobytes() for stratum in self.strata]
        return {
            "weights": [stratum.weight for stratum in self.strata],
            "rows": hashlib.sha256(b"|".join(rows)).hexdigest(),
            "seed": self.seed,
            "max_tokens_per_batch": self.max_tokens,
            "packing": self.packed,
            "group_by_modality": self.by_modality,
            "world_size": self.world_size,
            "lengths": self.facts.digest(),
        }

    @cached_property
    def _composed(self) -> tuple[list[Step], list[tuple[list[Step], int]]]:
        """Steps of every epoch, and for each fraction its steps and how many of them an epoch takes."""
        draws = random.Random(f"{self.seed}:batches")
        whole: list[int] = []
        parts: list[tuple[list[Step], int]] = []
        for stratum in self.strata:
            times, fraction = divmod(stratum.weight, 1)
            whole += list(stratum.rows) * int(times)
            if fraction and stratum.rows:
                steps = self._steps(list(stratum.rows), draws)
                parts.append((steps, min(len(steps), max(1, round(len(steps) * fraction)))))
        return self._steps(whole, draws), parts

    def _steps(self, visits: list[int], draws: random.Random) -> list[Step]:
        """Compose batches and deal them to steps of batches of like length and modality."""
        draws.shuffle(visits)
        groups = list(split_by_modality(visits, self.facts).values()) if self.by_modality else [visits]
        batches = [batch for group in groups for batch in self._batches(group)]
        batches = evenly_many(batches, self.world_size)
        return [batches[start : start + self.world_size] for start in range(0, len(batches), self.world_size)]

    def _batches(self, visits: list[int]) -> Iterator[list[int]]:
        lengths = self.facts.lengths
        compose = packed_batches if self.packed else padded_batches
        for start in range(0, len(visits), WINDOW_ROWS):
            window = sorted(visits[start : start + WINDOW_ROWS], key=lambda row: -lengths[row])
            yield from compose(window, lambda row: lengths[row], self.max_tokens)


def padded_batches(rows: Sequence[int], length: Callable[[int], int], max_tokens: int) -> list[list[int]]:
    """Cut rows, longest first, into batches whose padded rectangle (rows x longest) holds at most ``max_tokens``."""
    batches: list[list[int]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * length(batches[-1][0]) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def packed_batches(rows: Sequence[int], length: Callable[[int], int], max_tokens: int) -> list[list[int]]:
    """Best-fit decreasing: each row, longest first, goes to the batch with the least room that still holds it."""
    batches: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    for row in rows:
        place = bisect_left(rooms, (length(row), -1))
        if place < len(rooms):
            room, batch = rooms.pop(place)
            batches[batch].append(row)
        else:
            room, batch = max_tokens, len(batches)
            batches.append([row])
        insort(rooms, (room - length(row), batch))
    return batches


def evenly_many(batches: list[list[int]], world_size: int) -> list[list[int]]:
    """Split the batches with the most rows until their number divides by ``world_size``; their order is kept.

    Where too few rows are left to split, the last ``len(batches) % world_size`` batches, of one row each, are left out.
    """
    largest: list[tuple[int, tuple[int, ...], list[int]]] = [
        (-len(batch), (number,), batch) for number, batch in enumerate(batches)
    ]
    heapify(largest)
    while len(largest) % world_size and -largest[0][0] > 1:
        _, place, batch = heappop(largest)
        for half, rows in enumerate((batch[: len(batch) // 2], batch[len(batch) // 2 :])):
            heappush(largest, (-len(rows), (*place, half), rows))
    even = [batch for _, _, batch in sorted(largest, key=lambda entry: entry[1])]
    return even[: len(even) - len(even) % world_size]
