"""``--shard I/N``: which records a run prepares, decided by the record's key alone."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from longvid_train.errors import UserError


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``, counted from 1. Shards are disjoint, and all of them together are complete."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """``I/N`` with 1 <= I <= N.

        Raises:
            UserError: it is not of that form.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {text} must be I/N with 1 <= I <= N, e.g. --shard 3/8")
        return cls(int(match[1]), int(match[2]))

    def holds(self, key: str) -> bool:
        """Whether the record with this key belongs here; the same on every machine and in every run."""
        return self.count == 1 or key_hash(key) % self.count == self.index - 1

    def path(self, manifest: Path) -> Path:
        """Where this shard of ``manifest`` is written: ``NAME.shard-I-of-N.jsonl``, or ``manifest`` if there is one."""
        if self.count == 1:
            return manifest
        return manifest.with_name(f"{manifest.stem}.shard-{self.index}-of-{self.count}{manifest.suffix}")


def key_hash(key: str) -> int:
    """The first 64 bits of the key's BLAKE2b digest."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
