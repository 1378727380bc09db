"""Subtitles of public sets made fit for manifests: without markup, in the video's own time, as ``.srt`` files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_prep.media import MediaFolder
from longvid_train.errors import UserError
from longvid_train.files import write_text
from longvid_train.types import Subtitle
from longvid_train.world.encode import srt_text

_MARKUP = re.compile(r"</?(?:[biu]|font)\b[^<>]*>|\{\\[^{}]*\}", re.IGNORECASE)


def without_markup(text: str) -> str:
    r"""The words of a subtitle: ``<i>``, ``<font ...>`` and ``{\an8}`` go, and so do blank lines and double spaces."""
    lines = (" ".join(line.split()) for line in _MARKUP.sub("", text).replace("\0", "").splitlines())
    return "\n".join(line for line in lines if line)


def moved(subtitle: Subtitle, origin_s: float) -> Subtitle:
    """A subtitle without markup in the time of a video that starts at ``origin_s`` of the subtitle's."""
    return Subtitle(max(0.0, subtitle.start_s - origin_s), subtitle.end_s - origin_s, without_markup(subtitle.text))


@dataclass(frozen=True)
class MadeSubtitles:
    """A folder of ``.srt`` files that a module writes.

    Attributes:
        folder: of the files.
    """

    folder: MediaFolder

    @classmethod
    def open(cls, folder: Path | None, manifest: Path) -> "MadeSubtitles":
        """The folder as seen from ``manifest``, made where it is missing; None is NAME_srt beside NAME.jsonl.

        Two manifests of one folder so keep their subtitles apart: benchmarks may show the same video, cut differently.

        Raises:
            UserError: the folder cannot be made.
        """
        folder = folder or manifest.parent / f"{manifest.stem}_srt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--srt {folder}: the folder cannot be made ({error.strerror})") from error
        return cls(MediaFolder.open(folder, manifest, "subtitles"))

    def write(self, stem: str, subtitles: Iterable[Subtitle]) -> str:
        """Write ``STEM.srt`` unless it holds these lines already; blank ones are left out.

        Several processes may write a file at once: it appears whole, and all write the same.

        Returns:
            The path for rows.

        Raises:
            BadRecordError: ``stem`` leads out of the folder.
        """
        name = self.folder.checked(f"{stem}.srt")
        path, text = self.folder.folder / name, srt_text([one for one in subtitles if one.text])
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
        return self.folder.row_path(name)
