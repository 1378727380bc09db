"""Which rows calibrate and which are held out: by a hash of their numbers, and no video on both sides."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """Row numbers of both sides, each in rising order."""

    calibration: tuple[int, ...]
    held_out: tuple[int, ...]


def split_rows(keys: Sequence[str], *, held_out_share: float, seed: int) -> Selection:
    """Hold out whole groups of rows.

    Args:
        keys: of each row, equal for rows about the same media.
        held_out_share: groups are held out, in the order of the hashes of their first rows, until they have this share
            of all rows.
        seed: of the hashes.
    """
    groups: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    held_out: list[int] = []
    calibration: list[int] = []
    for rows in sorted(groups.values(), key=lambda rows: _hash(seed, rows[0])):
        side = held_out if len(held_out) < held_out_share * len(keys) else calibration
        side += rows
    return Selection(tuple(sorted(calibration)), tuple(sorted(held_out)))


def first_rows(rows: Sequence[int], most: int | None, *, seed: int) -> tuple[int, ...]:
    """At most ``most`` of ``rows``, chosen by a hash of their numbers; ``None`` is all of them."""
    return tuple(sorted(sorted(rows, key=lambda row: _hash(seed, row))[:most]))


def _hash(seed: int, row: int) -> bytes:
    return hashlib.sha256(f"{seed} {row}".encode()).digest()
