r"""Stage 3 text: LongAlpaca-12k, 9K long and 3K short questions; LLaMA-VID took 6K of them.

Layout (huggingface.co/datasets/Yukang/LongAlpaca-12k): LongAlpaca-12k.json, one array of {"instruction": QUESTION WITH
ITS TEXT, "output": ANSWER}, in some releases with "input" (blank, or put behind the instruction) and "file" (where the
text is from). A record without an id is named by a digest of its text.

example:
  python -m data_prep.longalpaca --annotations LongAlpaca-12k.json --min-characters 10000 \
      --out data/longalpaca/all.jsonl
  python -m data_prep.sample data/longalpaca/all.jsonl --rows 6000 --out data/longalpaca/manifest.jsonl
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.command_line import natural, run_source
from data_prep.conversations import check_no_placeholder
from data_prep.fields import shown, text_field
from data_prep.outcome import BadRecordError, DroppedError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_array import read_json_array
from data_prep.source import Origin
from longvid_train.console import argument
from longvid_train.data.manifest import Sample, Turn

ORIGIN = Origin(source="longalpaca", license="CC-BY-NC-4.0", version="LongAlpaca-12k")
_FIELDS = frozenset({"instruction", "input", "output", "file"})


@dataclass(frozen=True)
class LongAlpacaSource:
    """Records ``{"instruction", "output"}``; their key is a digest of both, since they have no id.

    Attributes:
        origin: the data set.
        annotations: ``LongAlpaca-12k.json``.
        min_characters: shorter records are dropped.
    """

    origin: Origin
    annotations: InputFile
    min_characters: int

    def inputs(self) -> Sequence[InputFile]:
        """The annotation file."""
        return (self.annotations,)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {"min_characters": self.min_characters}

    def read(self) -> Iterator[Item]:
        """All records."""
        return read_json_array(self.annotations)

    def key(self, value: Any) -> str:
        """The first 16 hex digits of a digest of question and answer."""
        digest = hashlib.sha256(f"{_question(value)}\0{text_field(value, 'output')}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One text row."""
        unknown = sorted(set(value) - _FIELDS)
        if unknown:
            raise BadRecordError(f"unknown field '{unknown[0]}'", f"known are {', '.join(sorted(_FIELDS))}")
        question, answer = _question(value), text_field(value, "output").strip()
        characters = len(question) + len(answer)
        if characters < self.min_characters:
            raise DroppedError("shorter than --min-characters", f"{characters} characters")
        turns = (Turn("user", question), Turn("assistant", answer))
        check_no_placeholder(turns)
        file = value.get("file")
        meta = {"characters": characters, **({"file": file} if isinstance(file, str) and file.strip() else {})}
        return [Sample(id=row_id, conversation=turns, meta=meta)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), required=True, help="LongAlpaca-12k.json, or ARCHIVE::MEMBER")
    add("--min-characters", type=argument(natural), default=0, help="drop records of fewer characters in all (0)")


def make_source(arguments: argparse.Namespace) -> LongAlpacaSource:
    """The source that the options describe."""
    return LongAlpacaSource(ORIGIN, arguments.annotations, arguments.min_characters)


def _question(value: Any) -> str:
    instruction, more = text_field(value, "instruction"), value.get("input") or ""
    if not isinstance(more, str):
        raise BadRecordError("field 'input' is not text", shown(more))
    return f"{instruction.strip()}\n\n{more.strip()}" if more.strip() else instruction.strip()


if __name__ == "__main__":
    sys.exit(run_source("longalpaca"))
