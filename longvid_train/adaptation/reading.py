"""Adaptations as YAML: read strictly, written so that reading gives the same record back."""

from collections.abc import Hashable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from longvid_train.adaptation.cache import CacheChoice
from longvid_train.adaptation.records import (
    R,
    as_mapping,
    check_keys,
    construct,
    plain_values,
    read_record,
    read_value,
)
from longvid_train.adaptation.settings import PLANS, WINDOWS, Adaptation
from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.errors import UserError, nearest

_KINDS: dict[str, Mapping[str, Any]] = {"plan": PLANS, "window": WINDOWS}
_RECORDS: dict[str, type[CacheChoice] | type[ZoomChoice]] = {"cache": CacheChoice, "zoom": ZoomChoice}
_HINTS = {"backbones": tuple[str, ...], "frames": int | None, "fps": float | None, "grouping": str}


def load_adaptation(path: str | Path) -> Adaptation:
    """Read one YAML file; a relative path to a quantizer in it is relative to its folder.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown or given twice, or a value cannot be used.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as an adaptation: {error}") from None
    return _resolved(parse_adaptation(text, where=str(path)), Path(path).parent)


def parse_adaptation(text: str, *, where: str) -> Adaptation:
    """Read YAML text; ``where`` names it in messages.

    Raises:
        UserError: as `load_adaptation`.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    return adaptation_of({} if value is None else value, where=where)


def adaptation_of(value: object, *, where: str) -> Adaptation:
    """Read plain values: ``{frames: 256, plan: {kind: progressive, group: 4}, window: {kind: visual_yarn}}``.

    Raises:
        UserError: a key is unknown or a value cannot be used.
    """
    given = as_mapping(value, where)
    check_keys(given, tuple(one.name for one in fields(Adaptation)), where)
    parsed = {key: _read_part(key, one, f"{where}: {key}") for key, one in given.items()}
    return construct(Adaptation, parsed, where)


def adaptation_values(adaptation: Adaptation) -> dict[str, Any]:
    """What differs from the defaults, as YAML and JSON can hold it; `adaptation_of` reads it back."""
    values = plain_values(adaptation)
    for key in _KINDS.keys() & values.keys():
        part = values[key]
        values[key] = {"kind": part.kind} | plain_values(part)
    for key in _RECORDS.keys() & values.keys():
        values[key] = plain_values(values[key])
    return values


def write_adaptation(adaptation: Adaptation) -> str:
    """YAML text that `parse_adaptation` reads back as the same record."""
    return yaml.safe_dump(adaptation_values(adaptation), sort_keys=False, default_flow_style=None)


def _resolved(adaptation: Adaptation, folder: Path) -> Adaptation:
    cache = adaptation.cache
    if cache is None or cache.quantizer is None:
        return adaptation
    return replace(adaptation, cache=replace(cache, quantizer=str((folder / cache.quantizer).resolve())))


def _read_part(key: str, value: object, where: str) -> Any:
    if key in _KINDS:
        return _read_kind(value, _KINDS[key], where)
    if key in _RECORDS:
        return None if value is None else read_record(_RECORDS[key], value, where)
    return read_value(_HINTS[key], value, where)


def _read_kind(value: object, kinds: Mapping[str, type[R]], where: str) -> R:
    given = dict(as_mapping(value, where))
    kind = given.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        hint = (nearest(str(kind), list(kinds)) or ".") if kind is not None else "."
        what = f"kind {kind!r} is unknown" if kind is not None else "has no kind"
        raise UserError(f"{where}: {what}{hint} Kinds: {', '.join(kinds)}")
    return read_record(kinds[kind], given, where)


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which would otherwise keep the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that stands twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)
