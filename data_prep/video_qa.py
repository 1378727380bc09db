"""The format that MSVD-QA and MSRVTT-QA share: arrays of {"answer", "id", "question", "video_id"}."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.answers import as_question, open_question
from data_prep.fields import name_field, text_field
from data_prep.media import MediaFolder
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_array import read_json_array
from data_prep.source import Origin
from longvid_train.data.manifest import Sample

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class VideoQA:
    """Open questions about numbered videos.

    Attributes:
        origin: the data set.
        annotations: train_qa.json, val_qa.json or test_qa.json.
        videos: where the videos are.
        split: name of the split; part of the rows' ids.
        stem: how files are named after a video's number, e.g. ``vid{}``.
        names: the name of a file (without suffix) by that stem, where files are named otherwise.
        names_file: the file that ``names`` was read from.
    """

    origin: Origin
    annotations: InputFile
    videos: MediaFolder
    split: str
    stem: str
    names: Mapping[str, str] = field(default_factory=dict)
    names_file: InputFile | None = None

    def inputs(self) -> Sequence[InputFile]:
        """The annotations and the table of names."""
        return (self.annotations,) if self.names_file is None else (self.annotations, self.names_file)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {"videos": self.videos.prefix, "split": self.split}

    def read(self) -> Iterator[Item]:
        """All questions."""
        return read_json_array(self.annotations)

    def key(self, value: Any) -> str:
        """Split and number of the question."""
        return f"{self.split}/{name_field(value, 'id')}"

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row; its ``meta`` holds what scoring needs."""
        answer = name_field(value, "answer")
        video_id = name_field(value, "video_id")
        meta = {"kind": "open", "answer": answer, "split": self.split, "video_id": video_id}
        if "category_id" in value:
            meta["category_id"] = value["category_id"]
        question = as_question(text_field(value, "question"))
        return [open_question(row_id=row_id, video=self._video(video_id), question=question, answer=answer, meta=meta)]

    def _video(self, video_id: str) -> str:
        numbered = self.stem.format(video_id)
        return self.videos.find_any(self.names.get(numbered, numbered), numbered, video_id)
