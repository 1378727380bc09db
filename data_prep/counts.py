"""How many records were read, kept and left out, and why."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS = ("dropped", "missing", "bad")


@dataclass
class Counts:
    """The closing summary of a run.

    Attributes:
        read: records of this shard.
        kept: those that gave rows.
        rows: rows written; a record may give several.
        left_out: ``kind -> reason -> records``, the kinds being those of `LeftOutError`.
    """

    read: int = 0
    kept: int = 0
    rows: int = 0
    left_out: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})

    def keep(self, rows: int) -> None:
        """Count a record that gave rows."""
        self.read += 1
        self.kept += 1
        self.rows += rows

    def leave_out(self, kind: str, reason: str) -> None:
        """Count a record that gave none."""
        self.read += 1
        self.left_out[kind][reason] += 1

    def total(self, kind: str) -> int:
        """Records left out by one kind of outcome."""
        return self.left_out[kind].total()

    @property
    def consistent(self) -> bool:
        """Whether every record read is kept or left out."""
        return self.read == self.kept + sum(self.total(kind) for kind in KINDS)

    def __add__(self, other: "Counts") -> "Counts":
        left_out = {kind: self.left_out[kind] + other.left_out[kind] for kind in KINDS}
        return Counts(self.read + other.read, self.kept + other.kept, self.rows + other.rows, left_out)

    def as_json(self) -> dict[str, Any]:
        """For receipts and ``--json``; reasons sorted by name."""
        left_out = {kind: dict(sorted(self.left_out[kind].items())) for kind in KINDS}
        return {"read": self.read, "kept": self.kept, "rows": self.rows, **left_out}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Counts":
        """Undo `as_json`."""
        left_out = {kind: Counter(value[kind]) for kind in KINDS}
        return cls(value["read"], value["kept"], value["rows"], left_out)
