"""The part of a video that a row shows."""

from dataclasses import replace

from longvid_train.data.manifest import Media
from longvid_train.video import Sampling


def windowed(sampling: Sampling, medium: Media) -> Sampling:
    """The sampling over the medium's ``start_s`` to ``end_s``; the same object for a whole video."""
    if medium.start_s == 0.0 and medium.end_s is None:
        return sampling
    return replace(sampling, start_s=medium.start_s, end_s=medium.end_s)
