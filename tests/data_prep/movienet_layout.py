"""MovieNet's folders, written by tests: shots, key frames in a tar, subtitles, scripts, meta and annotation."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longvid_train.types import Subtitle
from longvid_train.world.encode import srt_text

SHOTS = ((0, 47, (12, 24, 36)), (48, 50, (48, 49, 49)), (51, 239, (98, 145, 192)))
"""Ten seconds at 24 frames a second; the second shot is so short that two of its key frames are one."""
KEY_FRAMES = (12, 24, 36, 48, 49, 98, 145, 192)


@dataclass
class MovieNetLayout:
    """A folder ``files/`` and a folder ``240P/`` below ``root``."""

    root: Path
    made: Path = field(init=False)

    def __post_init__(self) -> None:
        self.files, self.key_frames = self.root / "files", self.root / "240P"
        self.made = self.root / "made"
        for folder in (self.files, self.key_frames):
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, kind: str, name: str, text: str | bytes) -> Path:
        path = self.files / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def shots(self, movie: str, shots: Sequence[tuple[int, int, Sequence[int]]]) -> Path:
        lines = [" ".join(map(str, (first, last, *keys))) for first, last, keys in shots]
        return self.write("shot", f"{movie}.txt", "\n".join(lines) + "\n")

    def tar(self, movie: str, pictures: Mapping[str, bytes]) -> Path:
        path = self.key_frames / f"{movie}.tar"
        with tarfile.open(path, "w") as archive:
            for name, raw in pictures.items():
                member = tarfile.TarInfo(f"{movie}/{name}")
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
        return path

    def movie(self, movie: str, **changes: Any) -> None:
        """A whole movie of `SHOTS`; keywords replace ``meta``, ``annotation``, ``subtitles``, ``script``."""
        self.shots(movie, SHOTS)
        self.tar(movie, shot_pictures(SHOTS))
        self.write("meta", f"{movie}.json", json.dumps(changes.get("meta", META)))
        self.write("annotation", f"{movie}.json", json.dumps(changes.get("annotation", ANNOTATION)))
        self.write("subtitle", f"{movie}.srt", changes.get("subtitles", srt_text(LINES)))
        self.write("script", f"{movie}.script", changes.get("script", "INT. CABIN - NIGHT\n\nThe door opens.\n"))


LINES = (
    Subtitle(0.1, 0.4, "over before the first key frame"),
    Subtitle(0.4, 1.2, "<i>Hello</i> there"),
    Subtitle(3.0, 5.0, "{\\an8}Who is it?"),
)
META = {
    "imdb_id": "tt0000001",
    "title": "The Door (1997)",
    "genres": ["Drama"],
    "version": [{"runtime": "194 min", "description": ""}],
    "overview": "A door opens,\nand closes again.",
}
ANNOTATION = {
    "imdb_id": "tt0000001",
    "cast": [],
    "scene": [],
    "story": [
        {
            "id": "tt0000001_0001",
            "shot": [2, 2],
            "frame": [51, 192],
            "duration": [2.125, 8.0],
            "description": "The guest leaves.",
        },
        {
            "id": "tt0000001_0000",
            "shot": [0, 1],
            "frame": [0, 48],
            "duration": [0.0, 2.0],
            "description": "A guest\ncomes in.",
        },
    ],
}


def grey(frame: int) -> int:
    """The grey that stands for a frame number."""
    return 30 + frame % 200


def jpeg(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def shot_pictures(shots: Sequence[tuple[int, int, Sequence[int]]]) -> dict[str, bytes]:
    """A grey picture for every key frame, under MovieNet's names, the last one first."""
    named = {
        f"shot_{shot:04d}_img_{image}.jpg": jpeg(np.full((24, 42, 3), grey(frame), np.uint8))
        for shot, (_, _, keys) in enumerate(shots)
        for image, frame in enumerate(keys)
    }
    return dict(reversed(named.items()))
