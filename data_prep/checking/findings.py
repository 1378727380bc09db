"""What is wrong with manifests, by kind: all counted, the first of each kind kept."""

from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

KINDS = {
    "row": "a row breaks a rule of the manifest format",
    "repeated_id": "an id stands in two rows of a manifest",
    "missing_file": "a media or subtitle file does not exist",
    "unreadable_media": "an image or video cannot be decoded",
    "bad_subtitles": "a subtitle file cannot be read",
    "window": "a row's part of a video lies behind the video's end",
    "too_long": "a row does not fit max_tokens, also after the token budget",
    "not_measured": "a row's length cannot be known, because of its media",
    "same_conversation": "a row has the media and the conversation of an earlier row",
    "same_media": "two files hold the same bytes",
    "leaked_media": "a media file is in an earlier manifest too, under this or another name",
    "leaked_question": "a question about the same media is in an earlier manifest too",
}
"""Kinds of problems; every one makes the check fail unless it is ignored."""

NOTICES = {"shortened": "a row fits max_tokens only after the token budget left something out"}
"""Kinds that are reported and do not make the check fail."""

LISTED = 1000
"""Problems of each kind that are kept."""


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        manifest: path of the manifest.
        line: counted from 1.
        message: what is wrong.
    """

    manifest: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.manifest}:{self.line}: {self.message}"


class Findings:
    """Counts by kind, and the first `LISTED` findings of each."""

    def __init__(self, ignored: Collection[str] = ()) -> None:
        """Kinds of ``ignored`` are counted and do not fail the check."""
        self.counts: Counter[str] = Counter()
        self.listed: dict[str, list[Finding]] = {}
        self._ignored = frozenset(ignored)

    def add(self, kind: str, manifest: str, line: int, message: str) -> None:
        """Note one finding of one of `KINDS` or `NOTICES`."""
        assert kind in KINDS or kind in NOTICES, kind
        self.counts[kind] += 1
        listed = self.listed.setdefault(kind, [])
        if len(listed) < LISTED:
            listed.append(Finding(manifest, line, message))

    def sort(self) -> None:
        """Put what is listed in the order of manifests and lines."""
        for listed in self.listed.values():
            listed.sort()

    @property
    def kinds(self) -> list[str]:
        """Kinds that were found, in the order of `KINDS`, notices last."""
        return [kind for kind in (*KINDS, *NOTICES) if self.counts[kind]]

    def fails(self, kind: str) -> bool:
        """Whether this kind makes the check fail."""
        return kind in KINDS and kind not in self._ignored

    @property
    def failed(self) -> bool:
        """Whether something was found that is neither a notice nor ignored."""
        return any(self.fails(kind) for kind in self.kinds)

    def as_json(self) -> dict[str, Any]:
        """Kind -> count, whether it fails the check, and the findings kept."""
        return {
            kind: {
                "count": self.counts[kind],
                "fails": self.fails(kind),
                "first": [finding._asdict() for finding in self.listed[kind]],
            }
            for kind in self.kinds
        }
