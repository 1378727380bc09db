"""Content hashes of the files and folders that settings name: a step is another one when they change."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longvid_train.files import sha256_file
from longvid_train.models.fingerprint import fingerprint

_WHOLE_BYTES = 16 << 20
"""Files of a folder that is no model are read whole up to this size; of larger ones name and size count."""


class Contents:
    """Hashes paths, each once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def named_by(self, value: Any) -> dict[str, str]:
        """Hashes of what exists of the texts in ``value`` that have a slash, by the text."""
        if isinstance(value, Mapping):
            return {path: digest for one in value.values() for path, digest in self.named_by(one).items()}
        if isinstance(value, list | tuple):
            return {path: digest for one in value for path, digest in self.named_by(one).items()}
        if not isinstance(value, str) or "/" not in value or not Path(value).exists():
            return {}
        if value not in self._known:
            self._known[value] = content_hash(Path(value))
        return {value: self._known[value]}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, `fingerprint` of a model's folder, or a hash over the files of another folder.

    Raises:
        UserError: the weights of a model are broken.
    """
    if path.is_file():
        return sha256_file(path)
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return fingerprint(path)
    digest = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        size = file.stat().st_size
        content = sha256_file(file) if size <= _WHOLE_BYTES else ""
        digest.update(f"{file.relative_to(path)}\0{size}\0{content}\n".encode())
    return digest.hexdigest()
