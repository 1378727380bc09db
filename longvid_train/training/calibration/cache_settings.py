"""The scheme of a calibration as a config says it: a preset and what to change of it, or schemes in full."""

from dataclasses import dataclass, fields, replace
from typing import Any

from longvid_train.adaptation.records import read_record
from longvid_train.errors import UserError, nearest
from longvid_train.kvcache.policy import SCHEMES, AnyScheme, CachePolicy
from longvid_train.kvcache.presets import preset


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Settings of a `CachePolicy`; what is not given is the preset's, or the policy's default.

    Attributes:
        preset: a name of ``kvcache.presets``; None with ``keys`` and ``values``.
        keys: the keys' scheme instead, e.g. ``{kind: static_channel, bits: 3}``.
        values: the values' scheme, likewise.
        sink_tokens: first tokens of every row that stay in full precision.
        recent_tokens: newest tokens that stay in full precision.
        flush_tokens: tokens that leave the recent window at once.
        protected_layers: layers that are not compressed; negative numbers count from the last.
        separate_visual: static parameters of their own for text and for visual tokens.
    """

    preset: str | None = None
    keys: dict[str, Any] | None = None
    values: dict[str, Any] | None = None
    sink_tokens: int | None = None
    recent_tokens: int | None = None
    flush_tokens: int | None = None
    protected_layers: list[int] | None = None
    separate_visual: bool | None = None

    def policy(self) -> CachePolicy:
        """The policy.

        Raises:
            UserError: neither or both of a preset and schemes, an unknown scheme, or values that cannot be.
        """
        schemes = {side: given for side in ("keys", "values") if (given := getattr(self, side)) is not None}
        if (self.preset is None) != bool(schemes):
            found = "both a preset and schemes" if schemes else "neither a preset nor schemes"
            raise UserError(f"cache has {found}; give cache.preset, e.g. lloyd2, or cache.keys and cache.values")
        start = CachePolicy() if self.preset is None else preset(self.preset)
        changes: dict[str, Any] = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name not in ("preset", "keys", "values") and getattr(self, one.name) is not None
        }
        if "protected_layers" in changes:
            changes["protected_layers"] = tuple(changes["protected_layers"])
        changes |= {side: read_scheme(given, where=f"cache.{side}") for side, given in schemes.items()}
        return replace(start, **changes)


def read_scheme(values: dict[str, Any], *, where: str) -> AnyScheme:
    """A scheme from its kind and settings.

    Raises:
        UserError: an unknown kind or setting, or a value that cannot be; ``where`` is named.
    """
    given = dict(values)
    kind = given.pop("kind", None)
    if kind not in SCHEMES:
        hint = nearest(str(kind), list(SCHEMES)) or "."
        raise UserError(f"{where}: kind {kind!r} is no scheme{hint} Schemes: {', '.join(SCHEMES)}")
    return read_record(SCHEMES[kind], given, where)
