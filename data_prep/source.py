"""What a source is: inputs to read, a key for each record, and how a record becomes manifest rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from longvid_train.data.manifest import Sample


@dataclass(frozen=True)
class Origin:
    """Where rows come from; stands in every row.

    Attributes:
        source: name of the data set.
        license: licence of its annotations, and of the media where they have another one.
        version: release of the data set that the module reads.
    """

    source: str
    license: str
    version: str


class Source(Protocol):
    """One public source. It is pickled to every process, so it holds settings and small tables only."""

    origin: Origin

    def inputs(self) -> Sequence[InputFile]:
        """The annotation files; their hashes go to the receipt."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """Every setting that the rows depend on, as JSON values; shards with other settings cannot be merged."""
        ...

    def read(self) -> Iterator[Item]:
        """All records in the order of the source.

        Raises:
            UserError: a file cannot be read any further.
        """
        ...

    def key(self, value: Any) -> str:
        """What identifies a record wherever it stands: decides its shard and names its rows. Repeats are allowed.

        Raises:
            BadRecordError: the record has none.
        """
        ...

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """The rows of one record: one with the id ``row_id``, or several whose ids start with it.

        Raises:
            LeftOutError: the record gives no row.
        """
        ...
