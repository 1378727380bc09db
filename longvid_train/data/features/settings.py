"""What a feature cache was made from and how it is stored; a clip's key is the SHA-256 of all of it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from longvid_train.errors import UserError
from longvid_train.types import ALL_PATCHES
from longvid_train.video import Sampling

VERSION = 1
"""Of the format and of the code that turns a file into pixels; raised when either changes."""

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

IMAGE_SAMPLING = "image"
"""Stands where a video has its sampling."""


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """What is kept of the tower's ``(1 + P, C)`` output of a frame.

    Attributes:
        dtype: ``"float16"``, ``"bfloat16"`` or ``"float32"`` (exact when the tower runs in float32).
        patches: ``"all"``, or ``"grid:n"`` for CLS and ``n x n`` average-pooled cells: exact for content tokens whose
            grid divides ``n``, another function for the context token (see ``MediaOptions.allow_pooled_context``).
    """

    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    patches: str = "all"

    def __post_init__(self) -> None:
        """Refuse what ``patches`` cannot be."""
        if self.patches != "all" and not re.fullmatch(r"grid:[1-9]\d*", self.patches):
            raise UserError(f"storage.patches is '{self.patches}'; it must be 'all' or 'grid:n', e.g. 'grid:4'")

    @property
    def grid(self) -> int:
        """``ALL_PATCHES``, or ``n`` of ``grid:n``."""
        return ALL_PATCHES if self.patches == "all" else int(self.patches.removeprefix("grid:"))

    def bytes_per_frame(self, patch_grid: int, width: int) -> int:
        """Bytes of one frame of a tower with ``patch_grid ** 2`` patches of ``width``."""
        side = patch_grid if self.grid == ALL_PATCHES else self.grid
        return (1 + side * side) * width * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Everything that decides the features of a file.

    Attributes:
        tower: SHA-256 of the vision tower's configuration and weights.
        preprocessing: how a file's frames became pixels.
        sampling: which frames of a video, without a row's window.
        dtype: see `StorageOptions`.
        patches: see `StorageOptions`.
        precision: Lightning's precision the tower ran in.
        version: see ``VERSION``.
    """

    tower: str
    preprocessing: Mapping[str, Any]
    sampling: str
    dtype: str
    patches: str
    precision: str
    version: int = VERSION

    @property
    def storage(self) -> StorageOptions:
        """What is kept of a frame."""
        return StorageOptions(dtype=self.dtype, patches=self.patches)  # type: ignore[arg-type]

    def differences(self, other: "FeatureSettings") -> list[tuple[str, str, str]]:
        """``(name, value here, value there)`` of all that differs, single settings of the preprocessing apart."""
        here, there = _flat(self), _flat(other)
        names = [*here, *(name for name in there if name not in here)]
        return [
            (name, str(here.get(name, "not set")), str(there.get(name, "not set")))
            for name in names
            if here.get(name) != there.get(name)
        ]


def settings_from_json(values: Mapping[str, Any]) -> FeatureSettings:
    """Read ``asdict(FeatureSettings(...))`` back."""
    return FeatureSettings(**values)


def canonical_json(value: Any) -> str:
    """JSON of one spelling: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def describe_sampling(sampling: Sampling | None) -> str:
    """A sampling as canonical text; None is an image's."""
    if sampling is None:
        return IMAGE_SAMPLING
    return canonical_json({"class": type(sampling).__name__, **asdict(sampling)})


def times_sha256(times_s: Sequence[float]) -> str:
    """Digest of frame times, as little-endian float64."""
    return hashlib.sha256(np.asarray(times_s, dtype="<f8").tobytes()).hexdigest()


def clip_key(settings: FeatureSettings, file_sha256: str, sampling: str, times_digest: str) -> str:
    """Address of one clip's features.

    Args:
        settings: of the cache.
        file_sha256: of the video or image file's bytes.
        sampling: ``describe_sampling`` with the clip's own window.
        times_digest: ``times_sha256`` of the frames' exact times.
    """
    parts = {"settings": asdict(settings), "file": file_sha256, "sampling": sampling, "times": times_digest}
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _flat(settings: FeatureSettings) -> dict[str, Any]:
    values = json.loads(canonical_json(asdict(settings)))
    nested = values.pop("preprocessing")
    return {**values, **{f"preprocessing.{name}": value for name, value in nested.items()}}
