"""What every row of a data set costs, known before anything is decoded."""

import logging
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from longvid_train.data.dataset import ManifestDataset
from longvid_train.data.manifest import Media
from longvid_train.data.order import IMAGE, TEXT, VIDEO, RowFacts

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RowTable:
    """Numbers of every row, after the token budget. All columns hold 0 for a row that cannot be used.

    Attributes:
        text_tokens: tokens of text, subtitles and special tokens included.
        visual_tokens: tokens of frames.
        frames: distinct frames.
        frames_dropped: frames that the token budget leaves out.
        modalities: ``TEXT``, ``IMAGE`` or ``VIDEO``.
        usable: 1, or 0 for a row that ``BadSamples`` leaves out.
    """

    text_tokens: "array[int]"
    visual_tokens: "array[int]"
    frames: "array[int]"
    frames_dropped: "array[int]"
    modalities: "array[int]"
    usable: "array[int]"

    def facts(self) -> RowFacts:
        """What orders need: total length and modality."""
        lengths = (text + visual for text, visual in zip(self.text_tokens, self.visual_tokens, strict=True))
        return RowFacts(array("q", lengths), self.modalities)

    def summary(self) -> str:
        """One line for logs."""
        text, visual, frames = sum(self.text_tokens), sum(self.visual_tokens), sum(self.frames)
        shortened = sum(dropped > 0 for dropped in self.frames_dropped)
        return (
            f"{sum(self.usable)} of {len(self.usable)} rows usable, {text + visual} tokens ({text} text, {visual} "
            f"visual), longest row {max(self.facts().lengths, default=0)}; {frames} frames, "
            f"{sum(self.frames_dropped)} left out of {shortened} rows"
        )


def measure(dataset: ManifestDataset) -> RowTable:
    """Plan every row; containers are probed, not decoded.

    Raises:
        UserError: a row cannot be used and ``BadSamples`` does not leave it out.
    """
    log.info("measuring %d rows", len(dataset))
    table = RowTable(*(array("q") for _ in range(6)))
    for index in range(len(dataset)):
        plan = dataset.usable_plan(index)
        table.modalities.append(modality(dataset.sample(index).media))
        table.usable.append(plan is not None)
        table.text_tokens.append(0 if plan is None else plan.tokens.text)
        table.visual_tokens.append(0 if plan is None else plan.tokens.visual)
        table.frames.append(0 if plan is None else plan.frames)
        table.frames_dropped.append(0 if plan is None or plan.shortening is None else plan.shortening.frames)
    log.info("%s", table.summary())
    return table


def modality(media: Iterable[Media]) -> int:
    """``VIDEO`` for a row with a video, else ``IMAGE`` for one with an image, else ``TEXT``."""
    types = {medium.type for medium in media}
    return VIDEO if "video" in types else IMAGE if types else TEXT


def modalities_of(dataset: ManifestDataset) -> "array[int]":
    """Modality of every row, from the manifests alone."""
    return array("q", (modality(dataset.sample(index).media) for index in range(len(dataset))))
