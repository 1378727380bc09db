"""What makes predictions what they are: continuing a run under other settings would mix two models in one score."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from longvid_train.adaptation.reading import adaptation_values
from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.manifest import Manifest
from longvid_train.errors import UserError
from longvid_train.evaluation.local.settings import EvaluationSettings
from longvid_train.evaluation.reading import field
from longvid_train.files import sha256_file, write_json
from longvid_train.models.identity import model_identity

RECORD_FILE = "evaluation.json"
VERSION = 2

_ANSWER_SETTINGS = (
    "template",
    "prompt",
    "frames",
    "fps",
    "subtitles",
    "open_suffix",
    "max_new_tokens",
    "temperature",
    "top_p",
    "num_beams",
    "seed",
    "dtype",
    "reader",
)
"""Settings that an answer depends on; batches, devices and processes change its rounding at most."""
_PACKAGES = ("longvid-train", "torch", "transformers", "numpy", "av", "decord")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the last start of an evaluation was to ask, and how it sums up; no answer depends on it.

    Attributes:
        questions: of the rows within ``limit``.
        limit: see `EvaluationSettings`.
        categories: likewise.
        duration_edges_s: likewise.
    """

    questions: int
    limit: int | None
    categories: tuple[str, ...]
    duration_edges_s: tuple[float, ...]


def identity_of(
    settings: EvaluationSettings, source: str | Path, adaptation: Adaptation, manifests: Sequence[Manifest]
) -> dict[str, Any]:
    """Plain values that decide every answer: content hashes of manifests and weights, the adaptation, how is asked.

    Args:
        settings: of the evaluation.
        source: the base model.
        adaptation: in force, the adapter's where that brings one.
        manifests: that are asked.

    Raises:
        UserError: the weights are missing or broken.
    """
    adapter = None if settings.adapter is None else Path(settings.adapter)
    identity = {
        "manifests": [manifest.sha256 for manifest in manifests],
        "model": model_identity(source, adapter=adapter).config_hash,
        "adaptation": adaptation_values(adaptation),
        "quantizer": _quantizer_hashes(adaptation),
        **{name: getattr(settings, name) for name in _ANSWER_SETTINGS},
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def open_record(folder: Path, identity: dict[str, Any], asked: Asked, facts: dict[str, Any]) -> None:
    """Make sure that ``folder`` holds predictions of this identity or none, and note the start.

    Args:
        folder: of the evaluation.
        identity: see `identity_of`.
        asked: by this start.
        facts: of this start, for the reader: the command, names.

    Raises:
        UserError: it holds others; the message names what differs.
    """
    path = folder / RECORD_FILE
    starts: list[dict[str, Any]] = []
    if path.is_file():
        record = read_record_file(folder)
        differing = [name for name in identity if record["identity"].get(name) != identity[name]]
        if differing:
            name = differing[0]
            raise UserError(
                f"{folder} holds predictions of another run: {', '.join(differing)} differ ({name} was "
                f"{_short(record['identity'].get(name))}, is {_short(identity[name])}); choose another --out, or "
                "restore what changed"
            )
        starts = record["starts"]
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    versions = {name: _version(name) for name in _PACKAGES}
    start = {"started_at": moment, **facts, "versions": versions}
    values = {"version": VERSION, "identity": identity, "asked": asdict(asked), "starts": [*starts, start]}
    write_json(path, values)


def read_record_file(folder: Path) -> dict[str, Any]:
    """The record of an evaluation's folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] == VERSION and isinstance(record["identity"], dict) and isinstance(record["starts"], list):
            found: dict[str, Any] = record
            return found
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a folder that longvid evaluate wrote") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); choose another --out") from None
    raise UserError(f"{path}: was written by another version of longvid evaluate; choose another --out")


def read_asked(folder: Path) -> Asked:
    """What the last start of an evaluation was to ask.

    Raises:
        UserError: as `read_record_file`.
    """
    where = str(folder / RECORD_FILE)
    asked = field(read_record_file(folder), "asked", dict, where)
    return Asked(
        questions=field(asked, "questions", int, where),
        limit=field(asked, "limit", (int, type(None)), where),
        categories=tuple(field(asked, "categories", list, where)),
        duration_edges_s=tuple(field(asked, "duration_edges_s", list, where)),
    )


def _quantizer_hashes(adaptation: Adaptation) -> dict[str, str]:
    """Content of the quantizer that the adaptation names: a new calibration in the same folder is another one."""
    if adaptation.cache is None or adaptation.cache.quantizer is None:
        return {}
    files = sorted(path for path in Path(adaptation.cache.quantizer).iterdir() if path.is_file())
    return {path.name: sha256_file(path) for path in files}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _short(value: object) -> str:
    words = json.dumps(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
