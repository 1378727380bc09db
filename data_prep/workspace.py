"""The unfinished part of a run: a folder beside the manifest that a killed run leaves and the next run takes up.

Rows, left-out records and row positions are appended; after each chunk the journal says how many bytes of each are
sound. What stands behind those bytes is cut off when the run is taken up.
"""

import fcntl
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from data_prep.conversion import Result
from data_prep.counts import Counts
from longvid_train.errors import UserError
from longvid_train.files import write_json

ROWS, LEFT_OUT, POSITIONS = "rows.jsonl", "left_out.jsonl", "positions.bin"
_FILES = (ROWS, LEFT_OUT, POSITIONS)
_JOURNAL = "journal.json"


class Workspace:
    """The growing files of one run.

    Attributes:
        folder: where they are.
        counts: of the records done so far.
        records_done: records of this shard that are done.
        resumed: whether an earlier run left some.
    """

    def __init__(self, folder: Path, fingerprint: str, files: Mapping[str, IO[bytes]]) -> None:
        self.folder = folder
        self._fingerprint = fingerprint
        self._files = files
        journal = _read_journal(folder, fingerprint, files)
        self.counts = Counts() if journal is None else Counts.from_json(journal["counts"])
        self.records_done: int = 0 if journal is None else journal["records_done"]
        self.resumed = self.records_done > 0
        for name, stream in files.items():
            stream.truncate(0 if journal is None else journal["bytes"][name])
            stream.seek(0, os.SEEK_END)

    def add(self, results: Sequence[Result], counts: Counts) -> None:
        """Append what became of a chunk and note in the journal that it is done."""
        for result in results:
            for row in result.rows:
                self._files[ROWS].write(row + b"\n")
            self._files[POSITIONS].write(array("Q", [result.task_position] * len(result.rows)).tobytes())
            if result.kind is not None:
                self._files[LEFT_OUT].write(_left_out_line(result))
        self.counts = counts
        self.records_done += len(results)
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        journal = {
            "fingerprint": self._fingerprint,
            "records_done": self.records_done,
            "counts": counts.as_json(),
            "bytes": {name: stream.tell() for name, stream in self._files.items()},
        }
        write_json(self.folder / _JOURNAL, journal)


@contextmanager
def open_workspace(folder: Path, fingerprint: str) -> Iterator[Workspace]:
    """Open the folder, new or left by a run with the same fingerprint; another run's is emptied.

    Raises:
        UserError: another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = stack.enter_context((folder / "lock").open("wb"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another run is writing this manifest; wait for it or name another --out"
            ) from error
        files = {name: stack.enter_context((folder / name).open("ab")) for name in _FILES}
        yield Workspace(folder, fingerprint, files)


def remove_workspace(folder: Path) -> None:
    """Remove the folder of a finished run."""
    shutil.rmtree(folder)


def _read_journal(folder: Path, fingerprint: str, files: Mapping[str, IO[bytes]]) -> Any:
    """The journal if it was written by a run with this fingerprint and everything it vouches for is there."""
    try:
        journal = json.loads((folder / _JOURNAL).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):  # none yet, or the machine went down while it was written
        return None
    whole = all(os.fstat(stream.fileno()).st_size >= journal["bytes"][name] for name, stream in files.items())
    return journal if journal["fingerprint"] == fingerprint and whole else None


def _left_out_line(result: Result) -> bytes:
    line = {
        "record": result.task_position,
        "where": result.where,
        "id": result.row_id,
        "kind": result.kind,
        "reason": result.reason,
        "detail": result.detail,
    }
    return json.dumps(line, ensure_ascii=True).encode("ascii") + b"\n"
