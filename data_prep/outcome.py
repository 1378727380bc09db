"""Why a record of a source gives no row: three outcomes, each counted, named and limited on its own."""

from typing import ClassVar


class LeftOutError(Exception):
    """A record gives no row.

    Attributes:
        kind: which of the three outcomes, as receipts and summaries count it.
        reason: a few words that are the same for all records left out for this reason; summaries count by it.
        detail: what exactly, with names and values.
    """

    kind: ClassVar[str]

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class DroppedError(LeftOutError):
    """The user's own settings leave the record out (a filter); no limit applies."""

    kind = "dropped"


class MissingMediaError(LeftOutError):
    """A file that the record names is not there; ``--skip-missing`` says how many are allowed."""

    kind = "missing"


class BadRecordError(LeftOutError):
    """The record breaks the source's format; ``--skip-bad`` says how many are allowed."""

    kind = "bad"
