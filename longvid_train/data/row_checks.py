"""The rules of one manifest row, each with the message a broken row gets. Pure functions of the row's text."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

from longvid_train.errors import UserError, nearest

PLACEHOLDER = re.compile(r"<(image|video)>")
"""``<image>`` or ``<video>`` in a user's text: one showing of the next medium."""

ROW_KEYS = ("id", "media", "conversation", "source", "license", "version", "meta")
MEDIA_KEYS = {"image": ("type", "path"), "video": ("type", "path", "subtitles", "start_s", "end_s")}
TURN_KEYS = ("role", "text")
ROLES = ("user", "assistant")


class RowError(UserError):
    """A row breaks a rule; the reader puts the file and line in front."""


def parse_sample(raw: bytes, *, require_answer: bool, allow_outside: bool) -> dict[str, Any]:
    """Parse one line and check it against every rule; defaults are not filled in.

    Raises:
        RowError: naming the field, its value and the rule.
    """
    row = _parse_json(raw)
    _keys(row, ROW_KEYS, required=("id", "conversation"), where="")
    _filled_text(row["id"], "id")
    for key in ("source", "license", "version"):
        _text(row.get(key, ""), key)
    _object(row.get("meta", {}), "meta")
    media = _list(row.get("media", []), "media")
    for position, medium in enumerate(media):
        _check_media(medium, f"media[{position}]", allow_outside)
    turns = _list(row["conversation"], "conversation")
    _check_turns(turns, require_answer)
    _check_placeholders(turns, [medium["type"] for medium in media])
    return row


def _parse_json(raw: bytes) -> dict[str, Any]:
    try:
        row = _DECODER.decode(raw.decode("utf-8"))
    except RowError:
        raise
    except UnicodeDecodeError as error:
        raise RowError(f"byte {error.start} of the line is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error.msg} at column {error.colno}; each line must hold one JSON object") from error
    except ValueError as error:
        raise RowError(f"not JSON: {error}") from error
    except RecursionError as error:
        raise RowError("the JSON is nested too deeply; keep 'meta' flat") from error
    if not isinstance(row, dict):
        raise RowError(f"the line holds a JSON {_kind(row)}; each line must hold one JSON object")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise RowError(f"{name} is not a JSON number; use a finite number or null")


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise RowError(f"key '{repeated}' stands twice in one object; keep one")
    return result


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object_without_repeats)
"""Built once: ``json.loads`` with these arguments builds one for every row."""


def _check_media(medium: Any, where: str, allow_outside: bool) -> None:
    _object(medium, where)
    kind = medium.get("type")
    if kind not in tuple(MEDIA_KEYS):
        _fail(f"{where}.type", kind, "it must be 'image' or 'video'")
    _keys(medium, MEDIA_KEYS[kind], required=("type", "path"), where=f"{where}.")
    _check_path(medium["path"], f"{where}.path", allow_outside)
    if medium.get("subtitles") is not None:
        _check_path(medium["subtitles"], f"{where}.subtitles", allow_outside)
    start_s = medium.setdefault("start_s", 0.0)
    _seconds(start_s, f"{where}.start_s")
    if medium.get("end_s") is not None:
        _seconds(medium["end_s"], f"{where}.end_s")
        if medium["end_s"] <= start_s:
            _fail(f"{where}.end_s", medium["end_s"], f"it must be after start_s ({start_s})")


def _check_path(path: Any, where: str, allow_outside: bool) -> None:
    _filled_text(path, where)
    if "\0" in path:
        _fail(where, path, "a path cannot hold a null character")
    if not allow_outside and ".." in path and ".." in PurePosixPath(path).parts:
        _fail(where, path, "it must stay inside the manifest's folder: no '..'; move the file or set allow_outside")


def _check_turns(turns: list[Any], require_answer: bool) -> None:
    if not turns:
        raise RowError("field 'conversation' is empty; it needs a user turn and an assistant turn")
    for position, turn in enumerate(turns):
        where = f"conversation[{position}]"
        _object(turn, where)
        _keys(turn, TURN_KEYS, required=TURN_KEYS, where=f"{where}.")
        if turn["role"] not in ROLES:
            _fail(f"{where}.role", turn["role"], "it must be 'user' or 'assistant'")
        if turn["role"] != ROLES[position % 2]:
            _fail(
                f"{where}.role",
                turn["role"],
                f"turns alternate from the user on, so it must be '{ROLES[position % 2]}'",
            )
        _text(turn["text"], f"{where}.text")
        if turn["role"] == "assistant" and not turn["text"].strip():
            _fail(f"{where}.text", turn["text"], "an answer cannot be blank")
    if require_answer and len(turns) % 2:
        _fail(f"conversation[{len(turns) - 1}].role", "user", "the last turn must be the assistant's answer")


def _check_placeholders(turns: Sequence[dict[str, Any]], media_types: list[str]) -> None:
    shown: list[str] = []
    for position, turn in enumerate(turns):
        found = PLACEHOLDER.findall(turn["text"])
        if found and turn["role"] == "assistant":
            raise RowError(f"field 'conversation[{position}].text' holds '<{found[0]}>'; only user turns show media")
        for kind in found:
            expected = media_types[len(shown)] if len(shown) < len(media_types) else None
            if kind != expected:
                what = f"media[{len(shown)}] is a{'n image' if expected == 'image' else ' video'}"
                rule = what if expected else f"'media' has only {_count(media_types)}"
                raise RowError(f"field 'conversation[{position}].text' holds '<{kind}>' but {rule}")
            shown.append(kind)
    if len(shown) < len(media_types):
        raise RowError(
            f"field 'media' has {_count(media_types)} but the user turns hold {len(shown)} placeholders; "
            f"put '<{media_types[len(shown)]}>' where media[{len(shown)}] is shown"
        )


def _count(media_types: list[str]) -> str:
    return "1 entry" if len(media_types) == 1 else f"{len(media_types)} entries"


def _keys(value: dict[str, Any], valid: tuple[str, ...], *, required: tuple[str, ...], where: str) -> None:
    for key in value:
        if key not in valid:
            raise RowError(f"unknown field '{where}{key}'{nearest(key, valid) or f'; it can hold {list(valid)}'}")
    for key in required:
        if key not in value:
            raise RowError(f"field '{where}{key}' is missing")


def _object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        _fail(where, value, "it must be a JSON object")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        _fail(where, value, "it must be a JSON array")
    return list(value)


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        _fail(where, value, "it must be a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            f"field '{where}' holds half a surrogate pair at character {error.start}; use whole characters"
        ) from error


def _filled_text(value: Any, where: str) -> None:
    _text(value, where)
    if not value.strip():
        _fail(where, value, "it cannot be blank")


def _seconds(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        _fail(where, value, "it must be a number of seconds, 0 or more")


def _fail(where: str, value: Any, rule: str) -> NoReturn:
    shown = f"'{value}'" if isinstance(value, str) else json.dumps(value)
    raise RowError(f"field '{where}' is {shown if len(shown) <= 80 else shown[:77] + '...'}; {rule}")


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
