"""The receipt beside a manifest: what it was made from, with which settings, and what was left out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.counts import Counts
from data_prep.shard import Shard
from data_prep.source import Source
from longvid_train import __version__
from longvid_train.errors import UserError
from longvid_train.files import sha256_file, write_json

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Order:
    """Everything the rows depend on; two runs with the same order write the same bytes.

    Attributes:
        source: name, licence and version of the data set.
        settings: of the module.
        inputs: name, size and SHA-256 of each annotation file.
        shard: which part.
        times_ns: when each annotation file was last changed; no part of the receipt.
        program: version of longvid-train.
    """

    source: Mapping[str, str]
    settings: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    shard: Shard
    times_ns: tuple[int, ...]
    program: str = __version__

    @classmethod
    def of(cls, source: Source, shard: Shard) -> "Order":
        """Hash the inputs of ``source``."""
        times_ns = _times_ns(source)
        inputs = tuple(
            {"file": item.short_name, "bytes": item.path.stat().st_size, "sha256": sha256_file(item.path)}
            for item in source.inputs()
        )
        origin = source.origin
        about = {"name": origin.source, "license": origin.license, "version": origin.version}
        return cls(source=about, settings=dict(source.settings()), inputs=inputs, shard=shard, times_ns=times_ns)

    def check_unchanged(self, source: Source) -> None:
        """Compare the inputs' times with what they were.

        Raises:
            UserError: a file was written to while it was read.
        """
        for item, before, now in zip(source.inputs(), self.times_ns, _times_ns(source), strict=True):
            if before != now:
                raise UserError(f"{item.name}: changed while it was read; run again when it is finished")

    def as_json(self) -> dict[str, Any]:
        """As the receipt holds it: what JSON gives back."""
        value = {
            "program": self.program,
            "source": dict(self.source),
            "settings": dict(self.settings),
            "inputs": [dict(item) for item in self.inputs],
            "shard": [self.shard.index, self.shard.count],
        }
        return dict(json.loads(json.dumps(value)))

    @property
    def fingerprint(self) -> str:
        """The same for equal orders."""
        return json.dumps(self.as_json(), sort_keys=True, ensure_ascii=True)


def _times_ns(source: Source) -> tuple[int, ...]:
    return tuple(item.path.stat().st_mtime_ns for item in source.inputs())


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One finished manifest or shard.

    Attributes:
        order: `Order.as_json`.
        records: records of the whole source, all shards together.
        counts: of this shard.
        files: suffix of a file's name behind the manifest's stem -> size and SHA-256.
    """

    order: Mapping[str, Any]
    records: int
    counts: Counts
    files: Mapping[str, Mapping[str, Any]]

    def write(self, path: Path) -> None:
        """Write the receipt atomically."""
        value = {"format": FORMAT, "order": dict(self.order), "records": self.records, "files": dict(self.files)}
        write_json(path, {**value, "counts": self.counts.as_json()})

    def check_files(self, manifest: Path) -> None:
        """Compare every file with what the receipt says.

        Raises:
            UserError: a file is gone or was changed.
        """
        for suffix, expected in self.files.items():
            path = beside(manifest, suffix)
            if not path.is_file():
                raise UserError(f"{path}: the file is gone, but {receipt_path(manifest)} lists it; prepare again")
            if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
                raise UserError(f"{path}: changed since it was written; prepare it again with --overwrite")


def beside(manifest: Path, suffix: str) -> Path:
    """A companion of ``manifest``: its name without ``.jsonl``, then ``.suffix``."""
    return manifest.with_name(f"{manifest.stem}.{suffix}")


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256, as a receipt lists them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def receipt_path(manifest: Path) -> Path:
    """Where the receipt of ``manifest`` stands."""
    return beside(manifest, "receipt.json")


def read_receipt(path: Path) -> Receipt | None:
    """Read a receipt; None if there is no such file.

    Raises:
        UserError: the file is no receipt.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise UserError(
                f"{path}: receipt of format {value['format']}, but this version reads {FORMAT}; prepare again"
            )
        counts = Counts.from_json(value["counts"])
        return Receipt(order=value["order"], records=value["records"], counts=counts, files=value["files"])
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a receipt of data_prep ({type(error).__name__}: {error}); prepare again"
        ) from error
