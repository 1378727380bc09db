"""Replies on disk by the content of their request: what was paid for once is never asked for again."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longvid_train.endpoint.messages import Message, Parameters, Reply
from longvid_train.errors import UserError
from longvid_train.files import write_json

_VERSION = 1


class ReplyCache:
    """A folder ``ab/<sha256 of model, messages and parameters>.json``, written atomically, safe to share."""

    def __init__(self, folder: Path) -> None:
        """Keep replies under ``folder``, which is made when the first is written."""
        self._folder = folder

    def get(self, model: str, messages: Sequence[Message], parameters: Parameters) -> Reply | None:
        """The kept reply to exactly this request, or None.

        Raises:
            UserError: the file is damaged, or holds another request.
        """
        request = _request(model, messages, parameters)
        path = self._path(request)
        try:
            raw = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            entry = json.loads(raw)
            if entry["version"] == _VERSION and entry["request"] == request:
                return Reply(**entry["reply"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"cached reply '{path}' is damaged ({error}); delete that file") from error
        raise UserError(f"cached reply '{path}' is of another request or version; delete that file")

    def put(self, model: str, messages: Sequence[Message], parameters: Parameters, reply: Reply) -> None:
        """Keep a reply."""
        request = _request(model, messages, parameters)
        write_json(self._path(request), {"version": _VERSION, "request": request, "reply": asdict(reply)})

    def _path(self, request: dict[str, Any]) -> Path:
        canonical = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode("ascii")).hexdigest()
        return self._folder / digest[:2] / f"{digest}.json"


def _request(model: str, messages: Sequence[Message], parameters: Parameters) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [message.as_json() for message in messages],
        "parameters": dict(parameters),
    }
