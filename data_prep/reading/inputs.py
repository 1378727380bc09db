"""Annotation files on disk, gzipped, or as members of a zip or tar archive (``ARCHIVE::MEMBER``), read in blocks."""

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from longvid_train.errors import UserError

BLOCK_BYTES = 1 << 20
SEPARATOR = "::"
BROKEN_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)


@dataclass(frozen=True)
class InputFile:
    """A file, or one member of an archive.

    Attributes:
        path: the file on disk.
        member: name of the member if ``path`` is an archive.
    """

    path: Path
    member: str | None = None

    @classmethod
    def parse(cls, text: str) -> "InputFile":
        """``FILE`` or ``ARCHIVE::MEMBER``.

        Raises:
            UserError: there is no such file.
        """
        name, separator, member = text.partition(SEPARATOR)
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such file; name an annotation file, or ARCHIVE{SEPARATOR}MEMBER")
        if separator and not member:
            raise UserError(f"{text}: the member's name is missing behind '{SEPARATOR}'")
        return cls(path, member or None)

    @property
    def name(self) -> str:
        """The name for messages: what the user gave."""
        return str(self.path) if self.member is None else f"{self.path}{SEPARATOR}{self.member}"

    @property
    def short_name(self) -> str:
        """The name for receipts: without the folder, which differs between machines."""
        return self.path.name if self.member is None else f"{self.path.name}{SEPARATOR}{self.member}"

    def blocks(self) -> Iterator[bytes]:
        """The bytes, at most `BLOCK_BYTES` at a time.

        Raises:
            UserError: the file cannot be read, the archive is damaged, or has no such member.
        """
        try:
            with self._opened() as stream:
                while block := stream.read(BLOCK_BYTES):
                    yield block
        except BROKEN_ARCHIVE as error:
            raise UserError(f"{self.name}: damaged or cut off ({error}); fetch it again") from error
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({error.strerror or error})") from error

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        if self.member is not None:
            with _opened_member(self.path, self.member) as stream:
                yield stream
        elif self.path.suffix == ".gz":
            with gzip.open(self.path, "rb") as unzipped:
                yield cast(IO[bytes], unzipped)
        else:
            with self.path.open("rb") as stream:
                yield stream


@contextmanager
def _opened_member(path: Path, member: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if member not in archive.NameToInfo:
                raise UserError(f"{path}: the archive has no member '{member}'")
            with archive.open(member) as stream:
                yield stream
        return
    with tarfile.open(path, "r:*") as tar:
        try:
            found = tar.extractfile(member)
        except KeyError:
            found = None
        if found is None:
            raise UserError(f"{path}: the archive has no file '{member}'")
        with found:
            yield found
