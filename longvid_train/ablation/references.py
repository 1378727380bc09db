"""``${name}`` in the values of a recipe: the output of an earlier step, or the seed."""

import re
from collections.abc import Mapping
from typing import Any

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")


def references(value: Any) -> tuple[str, ...]:
    """Names that a value refers to, in order, each once."""
    if isinstance(value, Mapping):
        return tuple(dict.fromkeys(name for one in value.values() for name in references(one)))
    if isinstance(value, list | tuple):
        return tuple(dict.fromkeys(name for one in value for name in references(one)))
    return tuple(dict.fromkeys(_REFERENCE.findall(value))) if isinstance(value, str) else ()


def filled(value: Any, names: Mapping[str, object]) -> Any:
    """``value`` with every reference replaced; a text that is one reference becomes the very value, type and all."""
    if isinstance(value, Mapping):
        return {key: filled(one, names) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [filled(one, names) for one in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    return names[whole[1]] if whole else _REFERENCE.sub(lambda found: str(names[found[1]]), value)
