"""Key frames on disk: ``shot_0012_img_1.jpg`` in a folder of the movie's name, or in ``tt0120338.tar``."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from data_prep.movies.shots import Shot
from data_prep.outcome import BadRecordError, MissingMediaError

MAX_PICTURE_BYTES = 16 * 2**20
_NAME = re.compile(r"shot_(\d{4,6})_img_(\d)\.jpg")
_SHOWN = 3


def read_pictures(folder: Path, movie: str) -> dict[tuple[int, int], bytes]:
    """The JPEG files of a movie by (shot, image), both counted from 0, from ``folder/MOVIE.tar`` or ``folder/MOVIE/``.

    Raises:
        MissingMediaError: there is neither.
        BadRecordError: the archive is damaged, or a picture stands in it twice.
    """
    archive = folder / f"{movie}.tar"
    if archive.is_file():
        entries = _from_tar(archive)
    elif (folder / movie).is_dir():
        entries = ((path.name, path.read_bytes()) for path in sorted((folder / movie).iterdir()) if path.is_file())
    else:
        raise MissingMediaError("the key frames are missing", f"{archive} or {folder / movie}/")
    pictures: dict[tuple[int, int], bytes] = {}
    for name, raw in entries:
        match = _NAME.fullmatch(PurePosixPath(name).name)
        if match is None:
            continue
        place = (int(match[1]), int(match[2]))
        if place in pictures:
            raise BadRecordError("the key frames are broken", f"{movie}: {match[0]} stands twice")
        pictures[place] = raw
    return pictures


def in_order(shots: tuple[Shot, ...], pictures: dict[tuple[int, int], bytes], movie: str) -> list[tuple[int, bytes]]:
    """Every key frame once: its frame number in the movie and its JPEG file, by increasing frame number.

    Raises:
        BadRecordError: the pictures are not exactly those that the shots name.
    """
    named = {
        (shot_index, index): frame
        for shot_index, shot in enumerate(shots)
        for index, frame in enumerate(shot.key_frames)
    }
    _check_same(set(named), set(pictures), movie)
    by_frame: dict[int, bytes] = {}
    for place in sorted(named):
        by_frame.setdefault(named[place], pictures[place])
    return sorted(by_frame.items())


def check_picture(raw: bytes, name: str) -> tuple[int, int]:
    """Width and height of a JPEG file, after decoding all of it.

    Raises:
        BadRecordError: it is no JPEG file or is cut off.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG",)) as image:
            image.load()
            return image.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadRecordError("a key frame is broken", f"{name}: {error}") from error


def _check_same(named: set[tuple[int, int]], found: set[tuple[int, int]], movie: str) -> None:
    if named == found:
        return
    sides = {"missing": sorted(named - found), "not in the shot file": sorted(found - named)}
    told = [
        f"{len(places)} {what} (" + ", ".join(f"shot_{shot:04d}_img_{image}" for shot, image in places[:_SHOWN]) + ")"
        for what, places in sides.items()
        if places
    ]
    raise BadRecordError("the key frames do not match the shot file", f"{movie}: {'; '.join(told)}")


def _from_tar(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is None:
                    continue
                if member.size > MAX_PICTURE_BYTES:
                    raise BadRecordError("the key frames are broken", f"{archive}: {member.name} is too large")
                yield member.name, stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadRecordError("the key frames are broken", f"{archive}: damaged or cut off ({error})") from error
