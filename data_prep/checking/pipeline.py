"""All steps of a check, one after the other. Nothing is kept for each row: what must be compared is on disk."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data_prep.checking.findings import Findings
from data_prep.checking.lengths import LengthFacts, LengthSettings, measure_chunk, measurer_of
from data_prep.checking.media_files import WINDOW_SLACK_S, Decoding, FileFacts, check_file, content
from data_prep.checking.media_table import Content, MediaTable
from data_prep.checking.repeated_rows import RepeatedRows
from data_prep.checking.rows import Card, ChunkFacts, Tally, chosen, chunks, read_chunk, three_digits
from data_prep.checking.workers import in_order
from longvid_train.data.manifest import ManifestRules
from longvid_train.video import DecodeLimits

Item = TypeVar("Item")


class Track(Protocol):
    """Shows progress while items are taken; ``rich.progress.Progress.track`` is one."""

    def __call__(self, sequence: Iterable[Item], /, *, total: float | None, description: str) -> Iterable[Item]:
        """The same items."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What is checked.

    Attributes:
        rules: what rows must fulfil; ``check_files`` says whether media and subtitle files are looked at.
        decoding: how they are tried.
        limits: what reading one of them may cost.
        lengths: token lengths to measure; None: none.
        processes: that parse, decode and measure.
    """

    rules: ManifestRules
    decoding: Decoding
    limits: DecodeLimits
    lengths: LengthSettings | None
    processes: int


@dataclass
class ManifestSummary:
    """What is known of one manifest.

    Attributes:
        path: of the file.
        size_bytes: of the file.
        tally: numbers of its rows.
        lengths: token lengths; None without a config.
        cards: rows to show.
    """

    path: str
    size_bytes: int
    tally: Tally
    lengths: LengthFacts | None
    cards: list[Card]

    def as_json(self) -> dict[str, Any]:
        """Numbers only."""
        tally, lengths = self.tally, self.lengths
        return {
            "path": self.path,
            "bytes": self.size_bytes,
            "rows": tally.rows,
            "modalities": dict(tally.modalities),
            "origins": [{**origin._asdict(), "rows": rows} for origin, rows in tally.origins.most_common()],
            "tokens": None if lengths is None else lengths.as_json(),
        }


@dataclass
class MediaSummary:
    """What is known of the media of all manifests.

    Attributes:
        media: different images and videos.
        subtitles: different subtitle files.
        opened: videos that were opened.
        duration_s: of those, together.
        durations_s: videos by length in seconds, to three digits.
    """

    media: int
    subtitles: int
    opened: int
    duration_s: float
    durations_s: "Counter[int]"


@dataclass(frozen=True)
class Checked:
    """The outcome.

    Attributes:
        summaries: one a manifest, in the order given.
        media: of all of them.
        findings: what is wrong.
    """

    summaries: list[ManifestSummary]
    media: MediaSummary
    findings: Findings

    def as_json(self) -> dict[str, Any]:
        """One object: ``ok``, ``manifests``, ``media`` and ``findings`` by kind."""
        return {
            "ok": not self.findings.failed,
            "manifests": [summary.as_json() for summary in self.summaries],
            "media": {key: value for key, value in asdict(self.media).items() if key != "durations_s"},
            "findings": self.findings.as_json(),
        }


def check(manifests: Sequence[str], options: CheckOptions, findings: Findings, track: Track) -> Checked:
    """Check manifests, each a split of its own.

    Raises:
        UserError: a manifest, the config or the model's folder cannot be read.
    """
    if options.lengths is not None:
        measurer_of(options.lengths)
    with MediaTable() as table, RepeatedRows(manifests) as repeated:
        run = _Run(manifests, options, findings, track, table, repeated)
        summaries = [run.rows(number) for number in range(len(manifests))]
        repeated.report(findings)
        media = run.files()
        run.contents()
        if options.lengths is not None:
            for summary in summaries:
                summary.lengths = run.lengths(summary, options.lengths)
    findings.sort()
    return Checked(summaries, media, findings)


@dataclass(frozen=True)
class _Run:
    """The steps, over what they share."""

    manifests: Sequence[str]
    options: CheckOptions
    findings: Findings
    track: Track
    table: MediaTable
    repeated: RepeatedRows

    def rows(self, number: int) -> ManifestSummary:
        """Read a manifest and note what later steps compare."""
        path = self.manifests[number]
        summary = ManifestSummary(path, 0, Tally(), None, [])
        pieces = list(chunks(Path(path)))
        summary.size_bytes = pieces[-1].end if pieces else 0
        several = len(self.manifests) > 1
        compares_media = self.options.rules.check_files or several
        first_line = 1
        facts: ChunkFacts
        for facts in self._over(read_chunk, pieces, f"rows of {path}", rules=self.options.rules, questions=several):
            for line, message in facts.broken:
                self.findings.add("row", path, first_line + line - 1, message)
            self.repeated.add(number, first_line, facts)
            if compares_media:
                self.table.add(number, first_line, facts)
            summary.tally.merge(facts.tally)
            moved = [card._replace(line=first_line + card.line - 1) for card in facts.cards]
            summary.cards = chosen([*summary.cards, *moved])
            first_line += facts.lines
        if not summary.tally.rows and "row" not in self.findings.kinds:
            self.findings.add("row", path, 1, "the manifest has no rows; write one JSON object a line")
        return summary

    def files(self) -> MediaSummary:
        """Look at every media and subtitle file once."""
        summary = MediaSummary(self.table.media_count, self.table.subtitles_count, 0, 0.0, Counter())
        if not self.options.rules.check_files:
            return summary
        total = summary.media + summary.subtitles
        facts: FileFacts
        options = {"decoding": self.options.decoding, "limits": self.options.limits}
        for facts in self._over(check_file, self.table.files(), "media files", total=total, **options):
            use = facts.use
            if facts.kind is not None:
                self.findings.add(facts.kind, self.manifests[use.manifest], use.line, facts.message)
            if facts.kind != "missing_file" and use.type != "subtitles":
                self.table.add_file(use.path, facts.size_bytes, facts.duration_s)
            if facts.duration_s is not None:
                summary.opened += 1
                summary.duration_s += facts.duration_s
                summary.durations_s[three_digits(round(facts.duration_s))] += 1
        self._windows()
        return summary

    def contents(self) -> None:
        """Find files of the same bytes, and media that are in several manifests. Only files of one size are read."""
        for path, digest in self._over(content, self.table.of_shared_size(), "files of the same size"):
            if digest is not None:
                self.table.add_content(path, digest)
        for uses in self.table.contents():
            first_in: dict[int, Content] = {}
            for use in uses:
                earlier = first_in.setdefault(use.manifest, use)
                path = self.manifests[use.manifest]
                if earlier is use and use.manifest != uses[0].manifest:
                    where = f"{self.manifests[uses[0].manifest]}:{uses[0].line}"
                    name = "" if use.path == uses[0].path else f" as '{uses[0].path}'"
                    self.findings.add("leaked_media", path, use.line, f"'{use.path}' is in {where} too{name}")
                elif earlier is not use:
                    message = f"'{use.path}' holds the same bytes as '{earlier.path}' (line {earlier.line})"
                    self.findings.add("same_media", path, use.line, message)

    def lengths(self, summary: ManifestSummary, settings: LengthSettings) -> LengthFacts:
        """Plan every row."""
        whole = LengthFacts()
        first_line = 1
        pieces = list(chunks(Path(summary.path)))
        facts: LengthFacts
        for facts in self._over(
            measure_chunk, pieces, f"lengths of {summary.path}", rules=self.options.rules, settings=settings
        ):
            for kind, found in (
                ("too_long", facts.refused),
                ("not_measured", facts.unmeasured),
                ("shortened", facts.shortened),
            ):
                for line, message in found:
                    self.findings.add(kind, summary.path, first_line + line - 1, message)
            whole.merge_numbers(facts)
            first_line += facts.lines
        return whole

    def _windows(self) -> None:
        for window in self.table.timed_windows():
            end_s = window.start_s if window.end_s is None else window.end_s
            beyond = end_s > window.duration_s + WINDOW_SLACK_S
            if window.start_s >= window.duration_s or beyond:
                part = f"{window.start_s:g} s to {'its end' if window.end_s is None else f'{window.end_s:g} s'}"
                message = f"'{window.path}' lasts {window.duration_s:.2f} s and the row shows {part}"
                self.findings.add("window", self.manifests[window.manifest], window.line, message)

    def _over(
        self,
        function: Callable[..., Any],
        items: Iterable[Any],
        description: str,
        *,
        total: int | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """``function(item, **options)`` over items in all processes, with progress."""
        if isinstance(items, list):
            total = len(items)
        results = in_order(partial(function, **options), items, self.options.processes)
        return iter(self.track(results, total=total, description=description))
