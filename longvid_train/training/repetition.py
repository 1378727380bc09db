"""Whether a run was repeated bit for bit: two run folders compared."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from longvid_train.errors import UserError
from longvid_train.training.callbacks import ADAPTER_FOLDER, MODEL_FOLDER
from longvid_train.training.record import RECORD_FILE
from longvid_train.training.trace import digest
from longvid_train.training.tracking import METRICS_FILE, read_metrics

MEASURED_METRICS = frozenset(
    {
        "train/step_s",
        "train/data_wait_s",
        "train/data_wait_share",
        "train/tokens_per_s",
        "train/frames_per_s",
        "train/samples_per_s",
        "train/mfu",
        "train/mfu_without_wait",
        "train/peak_bytes",
        "train/peak_reserved_bytes",
    }
)
"""Metrics that are measured on the machine, not computed from the data: they differ from run to run."""

FACTS = ("git_commit", "seed", "world_size", "manifest_sha256", "features_index_sha256", "versions", "hardware")
"""What ``run.json`` says of a start that decides its numbers."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One thing that two runs were compared by.

    Attributes:
        what: the thing: a file of the run folder.
        same: bit for bit.
        detail: how much was compared, or where the first difference is.
    """

    what: str
    same: bool
    detail: str


def compare_runs(first: Path, again: Path) -> list[Comparison]:
    """Compare the weights, the metrics but `MEASURED_METRICS` and the answers of two run folders, bit for bit.

    Raises:
        UserError: ``first`` holds no finished run.
    """
    weights = [path for folder in (MODEL_FOLDER, ADAPTER_FOLDER) for path in (first / folder).glob("*.safetensors")]
    if not weights or not (first / METRICS_FILE).exists():
        raise UserError(
            f"{first}: holds no finished run ({MODEL_FOLDER}/ or {ADAPTER_FOLDER}/ and {METRICS_FILE}); name the "
            "run folder of a longvid fit that reached its end"
        )
    names = [str(path.relative_to(first)) for path in sorted(weights)]
    found = [_compare(name, first, again, load_file, "tensors") for name in names]
    found.append(_compare(METRICS_FILE, first, again, _computed_metrics, "lines"))
    answers = sorted({path.name for run in (first, again) for path in run.glob("answers_*.jsonl")})
    return found + [_compare(name, first, again, _lines, "lines") for name in answers]


def differing_facts(first: Path, again: Path) -> list[str]:
    """One line for each fact of the last starts in ``run.json`` that differs: why two runs may not be the same."""
    left, right = last_start(first), last_start(again)
    return [
        f"{name} was {json.dumps(left.get(name))} and is {json.dumps(right.get(name))}"
        for name in FACTS
        if left.get(name) != right.get(name)
    ]


def last_start(run: Path) -> dict[str, Any]:
    """The last start in a run's ``run.json``.

    Raises:
        UserError: there is none.
    """
    path = run / RECORD_FILE
    if not path.is_file():
        raise UserError(f"{run}: no {RECORD_FILE}; name the run folder of a longvid fit")
    start: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["starts"][-1]
    return start


def _compare(name: str, first: Path, again: Path, read: Callable[[Path], dict[str, Any]], unit: str) -> Comparison:
    """Compare one file of both runs, part by part."""
    missing = [run for run in (first, again) if not (run / name).is_file()]
    if missing:
        return Comparison(what=name, same=False, detail=f"missing in {missing[0]}")
    left, right = read(first / name), read(again / name)
    parts = list(dict.fromkeys([*left, *right]))
    differing = [part for part in parts if not _same(left.get(part), right.get(part))]
    if not differing:
        return Comparison(what=name, same=True, detail=f"{len(parts)} {unit}")
    detail = f"{len(differing)} of {len(parts)} {unit} differ, the first is {differing[0]}"
    return Comparison(what=name, same=False, detail=detail)


def _computed_metrics(path: Path) -> dict[str, Any]:
    lines = read_metrics(path.parent)
    return {
        f"line {number} (step {line['step']})": {
            name: value for name, value in line.items() if name not in MEASURED_METRICS
        }
        for number, line in enumerate(lines, 1)
    }


def _lines(path: Path) -> dict[str, Any]:
    return {f"line {number}": line for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)}


def _same(left: Any, right: Any) -> bool:
    """Equal to the bit: NaN is itself, and 0.0 is not -0.0."""
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        return left is not None and right is not None and digest(left) == digest(right)
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
