"""LLaVA's annotation format, which many sources share: one JSON array of conversations about at most one medium."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.conversations import check_no_placeholder, read_conversation, show_medium, split_rounds
from data_prep.fields import name_field, text_field
from data_prep.media import MediaFolder
from data_prep.outcome import BadRecordError, DroppedError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_array import read_json_array
from data_prep.source import Origin
from longvid_train.data.manifest import Media, Sample, Turn


@dataclass(frozen=True)
class LlavaSource:
    """Records ``{"id", "image" | "video" | neither, "conversations": [{"from", "value"}, ...]}``.

    Attributes:
        origin: the data set.
        annotations: the JSON arrays, read one after the other.
        images: where images are; None: records with an image are dropped.
        videos: where videos are; None: records with a video are dropped.
        texts: whether records without a medium are kept.
        max_rounds: longest piece of a conversation about a medium, in questions; the medium is shown again in each
            piece. Text-only conversations stay whole, as in the public ``maxround`` files. None: no splitting.
        id_fields: fields that may name a record; the first that is there does.
    """

    origin: Origin
    annotations: tuple[InputFile, ...]
    images: MediaFolder | None = None
    videos: MediaFolder | None = None
    texts: bool = True
    max_rounds: int | None = None
    id_fields: tuple[str, ...] = ("id",)

    def inputs(self) -> Sequence[InputFile]:
        """The annotation files."""
        return self.annotations

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {
            "images": self.images and self.images.prefix,
            "videos": self.videos and self.videos.prefix,
            "texts": self.texts,
            "max_rounds": self.max_rounds,
        }

    def read(self) -> Iterator[Item]:
        """All records of all files."""
        for file in self.annotations:
            yield from read_json_array(file)

    def key(self, value: Any) -> str:
        """The record's id."""
        present = [name for name in self.id_fields if isinstance(value, Mapping) and name in value]
        return name_field(value, present[0] if present else self.id_fields[0])

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row, or one a piece if the conversation is longer than ``max_rounds``."""
        conversation = read_conversation(value)
        media = self._media(value)
        if media is None:
            check_no_placeholder(conversation.turns)
            return [Sample(id=row_id, conversation=conversation.turns, meta=conversation.notes)]
        return [
            Sample(id=name, conversation=show_medium(piece, media.type), media=(media,), meta=conversation.notes)
            for name, piece in self._pieces(conversation.turns, row_id)
        ]

    def _pieces(self, turns: Sequence[Turn], row_id: str) -> list[tuple[str, tuple[Turn, ...]]]:
        pieces = split_rounds(turns, self.max_rounds)
        if len(pieces) == 1:
            return [(row_id, pieces[0])]
        return [(f"{row_id}/{number}", piece) for number, piece in enumerate(pieces, start=1)]

    def _media(self, value: Mapping[str, Any]) -> Media | None:
        kinds = [kind for kind in ("image", "video") if kind in value]
        if len(kinds) == 2:
            raise BadRecordError("the record has both an image and a video")
        if not kinds:
            if not self.texts:
                raise DroppedError("the record has no medium")
            return None
        if kinds == ["image"]:
            if self.images is None:
                raise DroppedError("the record shows an image and no image folder is given")
            return Media(type="image", path=self.images.find(text_field(value, "image")))
        if self.videos is None:
            raise DroppedError("the record shows a video and no video folder is given")
        return Media(type="video", path=self.videos.find_video(text_field(value, "video")))
