"""Media files of a row to preprocessed frames, in the worker that needs them. Nothing here keeps a decoder open."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvid_train.data.conversation import LoadedMedium, MediumLayout
from longvid_train.data.features.source import FeatureSource
from longvid_train.data.frame_counts import FrameCounts, thinned
from longvid_train.data.manifest import Media
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.subtitles import lines_after_frames, lines_in_window
from longvid_train.data.windows import windowed
from longvid_train.data.worker_threads import decoding_threads
from longvid_train.types import Subtitle
from longvid_train.video import (
    DecodeLimits,
    FramesPerSecond,
    Sampling,
    probe,
    read_clip,
    read_image,
    read_subtitles,
)


@dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """How videos and images are read.

    Attributes:
        sampling: which frames of a video; a row's ``start_s``/``end_s`` replace its window.
        reader: ``"auto"``, ``"pyav"`` or ``"decord"``.
        isolated: decode in a killable subprocess (for files from strangers).
        exact: False may snap to keyframes for speed.
        shortest_edge: decode at this many pixels along the shorter side; None decodes at the stored size.
        limits: ceilings on what a file may cost.
        cache_bytes: decoded frames each worker keeps in memory, so that questions on one video decode it once; 0 keeps
            none.
        probe_cache: file that remembers frame counts between runs, so that lengths of rows are known without probing
            every video again; None remembers them within a process only.
        features: folder of tower features made by ``longvid predict``, read instead of pixels; None decodes.
        rehash_files: read every media file once at the start to know that features are of this very file, even where
            the file system says that it has not changed since they were made.
        allow_pooled_context: let the context token attend to the cells of features that keep ``grid:n`` instead of to
            all patches. That is another function than the model computes elsewhere.
    """

    sampling: Sampling = field(default_factory=lambda: FramesPerSecond(fps=1.0))
    reader: str = "auto"
    isolated: bool = False
    exact: bool = True
    shortest_edge: int | None = None
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    cache_bytes: int = 0
    probe_cache: str | None = None
    features: str | None = None
    rehash_files: bool = False
    allow_pooled_context: bool = False


@dataclass(frozen=True, eq=False)
class _DecodedVideo:
    frames: NDArray[np.uint8]
    timestamps_s: tuple[float, ...]


class FrameCache:
    """Least-recently-used cache of decoded frames, bounded in bytes.

    Attributes:
        hits: look-ups that found their video.
        misses: look-ups that did not.
    """

    def __init__(self, capacity_bytes: int) -> None:
        """Keep at most ``capacity_bytes`` of frames."""
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[tuple[Path, Sampling], _DecodedVideo] = OrderedDict()
        self._used_bytes = 0
        self.hits = 0
        self.misses = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the frames kept now."""
        return self._used_bytes

    def get(self, key: tuple[Path, Sampling]) -> _DecodedVideo | None:
        """The kept video, or None."""
        video = self._entries.get(key)
        if video is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return video

    def put(self, key: tuple[Path, Sampling], video: _DecodedVideo) -> None:
        """Keep a video, dropping the least recently used ones; one larger than the whole cache is not kept."""
        if video.frames.nbytes > self._capacity_bytes:
            return
        self._entries[key] = video
        self._used_bytes += video.frames.nbytes
        while self._used_bytes > self._capacity_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._used_bytes -= dropped.frames.nbytes


class MediaLoader:
    """Reads a row's media with one set of options; holds settings and cached arrays only, so it pickles to any worker.

    Attributes:
        cache: the frames it keeps.
    """

    def __init__(
        self, options: MediaOptions, processor: MultimodalProcessor, features: FeatureSource | None = None
    ) -> None:
        """Read with ``options`` and preprocess with ``processor``, or take what ``features`` holds instead."""
        self._options = options
        self._processor = processor
        self._features = features
        self.cache = FrameCache(options.cache_bytes)
        self._frame_counts = FrameCounts(None if options.probe_cache is None else Path(options.probe_cache))

    def load(self, medium: Media, folder: Path, max_frames: int | None = None) -> LoadedMedium:
        """Decode and preprocess one medium whose relative paths start at ``folder``.

        Args:
            medium: the image or video.
            folder: where its relative paths start.
            max_frames: thin a video's sampled frames evenly to this many; only those are decoded.

        Raises:
            UserError: the file cannot be read, or breaks a limit.
        """
        if self._features is not None:
            return self._from_features(self._features, medium, folder, max_frames)
        path = folder / medium.path
        if medium.type == "image":
            frames = read_image(path, limits=self._options.limits)[None]
            return LoadedMedium(MediumLayout.without_subtitles("image", 1), self._processor.preprocess_frames(frames))
        video = self._decoded(path, self._thinned_sampling(path, medium, max_frames))
        lines = lines_after_frames(self._subtitles(medium, folder), video.timestamps_s)
        return LoadedMedium(MediumLayout("video", lines), self._processor.preprocess_frames(video.frames))

    def layout(self, medium: Media, folder: Path) -> MediumLayout:
        """Frame count and subtitle lines without decoding; all lines stand behind the last frame (lengths do not care).

        Raises:
            UserError: the container cannot be read.
        """
        if medium.type == "image":
            return MediumLayout.without_subtitles("image", 1)
        options = self._options
        if self._features is not None:
            frames = self._features.entry(folder, medium).clip.frame_count
        else:
            path, sampling = folder / medium.path, windowed(options.sampling, medium)
            frames = self._frame_counts.count(path, sampling, options.limits, isolated=options.isolated)
        return MediumLayout("video", lines_after_frames(self._subtitles(medium, folder), (float("-inf"),) * frames))

    def _from_features(
        self, features: FeatureSource, medium: Media, folder: Path, max_frames: int | None
    ) -> LoadedMedium:
        read, times_s = features.read(features.entry(folder, medium), max_frames)
        if medium.type == "image":
            return LoadedMedium(MediumLayout.without_subtitles("image", 1), features=read)
        lines = lines_after_frames(self._subtitles(medium, folder), times_s)
        return LoadedMedium(MediumLayout("video", lines), features=read)

    def _decoded(self, path: Path, sampling: Sampling) -> _DecodedVideo:
        key = (path, sampling)
        video = self.cache.get(key)
        if video is None:
            clip = read_clip(
                path,
                sampling,
                reader=self._options.reader,
                isolated=self._options.isolated,
                limits=self._options.limits,
                shortest_edge=self._options.shortest_edge,
                exact=self._options.exact,
                workers=decoding_threads(),
            )
            video = _DecodedVideo(clip.frames, tuple(clip.timestamps_s.tolist()))
            self.cache.put(key, video)
        return video

    def _thinned_sampling(self, path: Path, medium: Media, max_frames: int | None) -> Sampling:
        sampling = windowed(self._options.sampling, medium)
        if max_frames is None:
            return sampling
        return thinned(sampling, probe(path, isolated=self._options.isolated, limits=self._options.limits), max_frames)

    def _subtitles(self, medium: Media, folder: Path) -> Sequence[Subtitle]:
        if medium.subtitles is None:
            return ()
        window = windowed(self._options.sampling, medium)
        return lines_in_window(read_subtitles(folder / medium.subtitles), window.start_s, window.end_s)
