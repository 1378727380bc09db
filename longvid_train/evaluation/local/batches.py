"""Which questions are answered together. Pure."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def pools(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive runs of at most ``size`` items."""
    stream = iter(items)
    while pool := list(islice(stream, size)):
        yield pool


def alike(keys: Sequence[Hashable], size: int) -> list[list[int]]:
    """Positions in batches of at most ``size`` with equal keys; every position stands in one batch.

    Positions rise within a batch, and batches are in the order of their first position.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    batches = [group[first : first + size] for group in groups.values() for first in range(0, len(group), size)]
    return sorted(batches, key=lambda batch: batch[0])


def share(keys: Sequence[Hashable], rank: int, processes: int) -> list[int]:
    """Positions that process ``rank`` of ``processes`` takes, in order; equal keys go to one process."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [place for place, key in enumerate(keys) if numbers[key] % processes == rank]
