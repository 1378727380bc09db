"""``--probe``: a source whose media are opened, so that unreadable files are broken records."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.outcome import BadRecordError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.source import Origin, Source
from longvid_train.data.manifest import MediaType, Sample
from longvid_train.errors import UserError
from longvid_train.video import probe, read_image

_REMEMBERED = 10_000
"""Files whose state a process remembers: several records may show one."""


@dataclass(frozen=True)
class Probed:
    """Another source, whose videos' first frames and whose images are decoded, videos in processes of their own.

    Attributes:
        inner: the source.
        home: the manifest's folder, where relative media paths start.
    """

    inner: Source
    home: Path

    @property
    def origin(self) -> Origin:
        """The source's."""
        return self.inner.origin

    def inputs(self) -> Sequence[InputFile]:
        """The source's."""
        return self.inner.inputs()

    def settings(self) -> Mapping[str, Any]:
        """The source's, and that it is probed."""
        return {**self.inner.settings(), "probed": True}

    def read(self) -> Iterator[Item]:
        """The source's."""
        return self.inner.read()

    def key(self, value: Any) -> str:
        """The source's."""
        return self.inner.key(value)

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """The source's rows.

        Raises:
            BadRecordError: an image or video of a row cannot be read.
        """
        samples = self.inner.convert(value, row_id)
        for medium in (medium for sample in samples for medium in sample.media):
            problem = _problem(self.home / medium.path, medium.type)
            if problem is not None:
                raise BadRecordError(f"the {medium.type} cannot be read", problem)
        return samples


@functools.lru_cache(maxsize=_REMEMBERED)
def _problem(path: Path, kind: MediaType) -> str | None:
    try:
        if kind == "image":
            read_image(path)
        else:
            probe(path, isolated=True)
    except UserError as error:
        return str(error)
    return None
