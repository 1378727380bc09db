"""Finding the files that records name, below a folder that the user names; never outside it."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep.outcome import BadRecordError, MissingMediaError
from longvid_train.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".wmv", ".ts")
"""Tried in this order where a source names its videos without a suffix; after them the same in capitals."""


@dataclass(frozen=True)
class MediaFolder:
    """A folder of media and how manifest rows write a path in it.

    Attributes:
        folder: absolute path of the folder.
        prefix: what stands before a file's name in a row: the folder relative to the manifest's, or its absolute path.
        kind: ``"image"``, ``"video"``, ...: the word that messages and summaries use.
    """

    folder: Path
    prefix: str
    kind: str

    @classmethod
    def open(cls, folder: Path, manifest: Path, kind: str) -> "MediaFolder":
        """The folder as seen from ``manifest``: relative if it lies below the manifest's folder, else absolute.

        Raises:
            UserError: there is no such folder.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; name the folder that holds the {kind} files")
        absolute = _absolute(folder)
        home = _absolute(manifest).parent
        return cls(absolute, _prefix(absolute, home), kind)

    def find(self, name: str) -> str:
        """The row's path of a file that the source names with its suffix.

        Raises:
            BadRecordError: the name leads out of the folder.
            MissingMediaError: there is no such file.
        """
        relative = self.checked(name)
        if not self._holds(relative):
            raise MissingMediaError(f"{self.kind} is missing", f"{self.folder / relative}")
        return self.row_path(relative)

    def find_any(self, *stems: str) -> str:
        """The row's path of the first file that exists among ``stems`` with each of `VIDEO_SUFFIXES`.

        Raises:
            BadRecordError: a stem leads out of the folder.
            MissingMediaError: there is no such file.
        """
        relative = [self.checked(stem) for stem in stems]
        spelt = (*VIDEO_SUFFIXES, *map(str.upper, VIDEO_SUFFIXES))
        for name in (stem + suffix for stem in relative for suffix in spelt):
            if self._holds(name):
                return self.row_path(name)
        tried = " or ".join(dict.fromkeys(str(self.folder / stem) for stem in relative))
        raise MissingMediaError(f"{self.kind} is missing", f"{tried} with any of {' '.join(VIDEO_SUFFIXES)}")

    def find_video(self, name: str) -> str:
        """The row's path of a video that may be there with another suffix than the source says; errors as for `find`.

        Public files name videos by what was made of them (``v_abc.pkl``) or by one container where downloads differ.
        """
        relative = PurePosixPath(self.checked(name))
        if self._holds(relative.as_posix()) and relative.suffix.lower() in VIDEO_SUFFIXES:
            return self.row_path(relative.as_posix())
        named = relative.suffix.lower() in (*VIDEO_SUFFIXES, ".pkl")
        return self.find_any(relative.with_suffix("").as_posix() if named else relative.as_posix())

    def checked(self, name: str) -> str:
        """``name`` as a normal relative POSIX path.

        Raises:
            BadRecordError: it is absolute, leads out of the folder, or cannot name a file.
        """
        path = PurePosixPath(name)
        if not name.strip() or "\0" in name or "\\" in name or path.is_absolute() or ".." in path.parts:
            raise BadRecordError(f"the {self.kind}'s path leads out of its folder or names no file", repr(name)[:120])
        return path.as_posix()

    def _holds(self, relative: str) -> bool:
        try:
            return (self.folder / relative).is_file()
        except OSError:  # the name is too long for a file
            return False

    def row_path(self, relative: str) -> str:
        """The path that a row holds for a file below the folder."""
        return (PurePosixPath(self.prefix) / relative).as_posix()


def _absolute(path: Path) -> Path:
    """Without ``..``, and with symbolic links as the user wrote them."""
    return Path(os.path.normpath(path.absolute()))


def _prefix(folder: Path, home: Path) -> str:
    return folder.relative_to(home).as_posix() if folder.is_relative_to(home) else folder.as_posix()
