"""A cache in place of the tower during training: every row is checked against it before any weights load."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from longvid_train.data.conversation import ConversationOptions, content_grid
from longvid_train.data.features.file_hashes import STORE_FILE, FileHashes
from longvid_train.data.features.index import Entry, check_same_settings, read_index
from longvid_train.data.features.reader import FeatureReader
from longvid_train.data.features.settings import describe_sampling
from longvid_train.data.features.shards import shard_paths
from longvid_train.data.frame_counts import evenly_spaced
from longvid_train.data.manifest import Manifest, Media, MediaType
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.windows import windowed
from longvid_train.errors import UserError
from longvid_train.types import ALL_PATCHES
from longvid_train.video import Sampling


class FeatureSource:
    """Features of a run's media, by file content and sampling. It pickles to any worker."""

    def __init__(
        self,
        folder: Path,
        *,
        tower: str,
        preprocessing: Mapping[str, Any],
        sampling: Sampling,
        rehash: bool = False,
    ) -> None:
        """Open a cache and check that it was made as this run would make it.

        Args:
            folder: of the cache.
            tower: SHA-256 of this run's tower.
            preprocessing: this run's ``preprocessing_settings``.
            sampling: this run's.
            rehash: read every media file once to know its hash, whatever is remembered of it.

        Raises:
            UserError: the cache is damaged, or was made with another tower, sampling or preprocessing; the message
                names both values.
        """
        index = read_index(folder)
        wanted = replace(index.settings, tower=tower, preprocessing=preprocessing, sampling=describe_sampling(sampling))
        check_same_settings(folder, index.settings, wanted, "this run has")
        self.storage = index.settings.storage
        self._folder = folder
        self._sampling = sampling
        self._unlisted = len({path.name for path in shard_paths(folder)} - index.shards.keys())
        self._entries = {(entry.clip.file_sha256, entry.clip.sampling): entry for entry in index.entries.values()}
        self._hashes = FileHashes(folder / STORE_FILE, rehash=rehash)
        self._reader = FeatureReader(folder)

    def check_context(self, processor: MultimodalProcessor, *, allow_pooled: bool) -> None:
        """Check that the context token has the patches it attends to.

        Raises:
            UserError: the cache has pooled them and ``allow_pooled`` is not set.
        """
        if self.storage.grid != ALL_PATCHES and processor.reads_patches and not allow_pooled:
            raise UserError(
                f"{self._folder}: the features keep {self.storage.patches}, but the model's context token attends to "
                "all patches; make features with data.storage.patches all, or set data.media.allow_pooled_context to "
                "train another function"
            )

    def check_manifest(self, manifest: Manifest, conversation: ConversationOptions) -> None:
        """Check that every medium of every row is in the cache, that its file is the one the cache was made from, and
        that the cache has the cells its content tokens are pooled from.

        Raises:
            UserError: ``file:line`` of the first row whose media are not.
        """
        for row, sample in enumerate(manifest):
            for position, medium in enumerate(sample.media):
                try:
                    self.entry(manifest.path.parent, medium)
                    self._check_grid(medium.type, content_grid(medium.type, conversation))
                except UserError as error:
                    where = f"{manifest.path}:{manifest.line_number(row)}"
                    raise UserError(f"{where}: field 'media[{position}].path': {error}") from error

    def entry(self, folder: Path, medium: Media) -> Entry:
        """The cached clip of a medium whose relative paths start at ``folder``.

        Raises:
            UserError: it is not in the cache; the message says whether the file, its part or everything is missing.
        """
        path = (folder / medium.path).absolute()
        sampling = None if medium.type == "image" else windowed(self._sampling, medium)
        digest, described = self._hashes.sha256(path), describe_sampling(sampling)
        entry = self._entries.get((digest, described))
        if entry is None:
            raise UserError(self._missing(path, digest, described))
        return entry

    def read(self, entry: Entry, max_frames: int | None = None) -> tuple[torch.Tensor, tuple[float, ...]]:
        """Features and times of a clip's frames, thinned evenly to ``max_frames`` as decoding would.

        Returns:
            ``(N, 1 + P, C)`` in the storage type, and N times.

        Raises:
            UserError: the shard is damaged.
        """
        count = entry.clip.frame_count
        kept = range(count) if max_frames is None or count <= max_frames else evenly_spaced(count, max_frames).tolist()
        times_s = self._reader.times_s(entry)
        return self._reader.frames(entry, kept), tuple(times_s[number] for number in kept)

    def _check_grid(self, kind: MediaType, wanted: int) -> None:
        grid = self.storage.grid
        if grid != ALL_PATCHES and (wanted == ALL_PATCHES or grid % wanted):
            needs = "every patch" if wanted == ALL_PATCHES else f"{wanted} x {wanted} cells"
            raise UserError(
                f"data.conversation.{kind}_content_grid {wanted} needs {needs} and the features '{self._folder}' keep "
                f"{self.storage.patches}; set it to a divisor of {grid}, or make features with data.storage.patches all"
            )

    def _missing(self, path: Path, digest: str, described: str) -> str:
        of_path = [entry.clip for entry in self._entries.values() if entry.clip.path == str(path)]
        parts = sorted({clip.sampling for clip in of_path if clip.file_sha256 == digest})
        if parts:
            return f"'{path}' is in the features '{self._folder}' with {parts[0]} and not with {described}; {_REMEDY}"
        if of_path:
            return (
                f"'{path}' has SHA-256 {digest[:16]} and the features in '{self._folder}' were made from "
                f"{of_path[0].file_sha256[:16]}: the file has changed; {_REMEDY}"
            )
        unlisted = (
            f", or {self._unlisted} shards that index.json does not list yet may hold it" if self._unlisted else ""
        )
        return (
            f"'{path}' is not in the features '{self._folder}', which hold {len(self._entries)} clips; "
            f"{_REMEDY}{unlisted}"
        )


_REMEDY = "run longvid predict with this manifest and the same --run_dir: it makes only what is missing"


def preprocessing_settings(
    processor: MultimodalProcessor, *, reader: str, shortest_edge: int | None, exact: bool
) -> dict[str, Any]:
    """What decides the pixels of a frame, as JSON values.

    Raises:
        UserError: ``exact`` is False: which frames are shown would depend on where a read starts.
    """
    if not exact:
        raise UserError("data.media.exact is false: features are made of the exact frames only; set it to true")
    return {**processor.frame_settings, "reader": reader, "shortest_edge": shortest_edge}
