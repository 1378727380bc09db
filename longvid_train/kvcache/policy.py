"""How one cache is compressed: a scheme for keys, one for values, and what stays as it is."""

import math
from dataclasses import dataclass, field
from typing import get_args

from longvid_train.errors import UserError
from longvid_train.kvcache.scheme import Scheme
from longvid_train.kvcache.schemes.bias_removed import BiasRemoved
from longvid_train.kvcache.schemes.dynamic_groups import DynamicGroups
from longvid_train.kvcache.schemes.full_precision import FullPrecision
from longvid_train.kvcache.schemes.intp import Intp
from longvid_train.kvcache.schemes.lloyd_max import LloydMax
from longvid_train.kvcache.schemes.static_channel import StaticChannel
from longvid_train.kvcache.schemes.transform_coding import TransformCoding

AnyScheme = FullPrecision | Intp | StaticChannel | BiasRemoved | LloydMax | TransformCoding | DynamicGroups

SCHEMES: dict[str, type[AnyScheme]] = {scheme.kind: scheme for scheme in get_args(AnyScheme)}


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """The settings of a quantized cache; the defaults compress nothing.

    Attributes:
        keys: how keys are coded.
        values: how values are coded.
        sink_tokens: first tokens of every row (after its padding) that are kept in full precision, to which models
            attend whatever they say.
        recent_tokens: newest tokens that are kept in full precision.
        flush_tokens: tokens that leave the recent window at once; raised to a multiple of what the schemes code
            together.
        protected_layers: layers that are not compressed; negative numbers count from the last.
        separate_visual: text and visual tokens have static parameters of their own.
    """

    keys: AnyScheme = field(default_factory=FullPrecision)
    values: AnyScheme = field(default_factory=FullPrecision)
    sink_tokens: int = 4
    recent_tokens: int = 128
    flush_tokens: int = 32
    protected_layers: tuple[int, ...] = ()
    separate_visual: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name, least in (("sink_tokens", 0), ("recent_tokens", 0), ("flush_tokens", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.values.rotary == "pre":
            raise UserError(f"values: '{self.values.kind}' takes a rotary embedding off, and values have none")
        if self.separate_visual and not (self.keys.calibrated or self.values.calibrated):
            raise UserError("separate_visual has no effect on schemes without static parameters; set it to false")

    @property
    def block_tokens(self) -> int:
        """Tokens that are flushed together: ``flush_tokens``, raised to what the schemes need."""
        needed = math.lcm(self.keys.block_tokens, self.values.block_tokens)
        return math.ceil(self.flush_tokens / needed) * needed

    @property
    def needs_rotation(self) -> bool:
        """Whether keys are coded before the rotary embedding."""
        return self.keys.rotary == "pre"

    @property
    def calibrated(self) -> bool:
        """Whether parameters come from a calibration."""
        return self.keys.calibrated or self.values.calibrated

    def schemes(self, layer: int, layers: int) -> tuple[Scheme, Scheme]:
        """The schemes of keys and values of layer ``layer`` of ``layers``."""
        if layer in self._protected(layers):
            return FullPrecision(), FullPrecision()
        return self.keys, self.values

    def check_shape(self, layers: int, head_dim: int) -> None:
        """Refuse a model this policy cannot compress.

        Raises:
            UserError: naming the setting and the model's value.
        """
        self._protected(layers)
        if self.needs_rotation and head_dim % 2:
            raise UserError(f"keys: '{self.keys.kind}' needs an even head dim, the model has {head_dim}")
        self.keys.check_head_dim(head_dim)
        self.values.check_head_dim(head_dim)

    def _protected(self, layers: int) -> set[int]:
        for layer in self.protected_layers:
            if not -layers <= layer < layers:
                raise UserError(f"protected_layers names layer {layer}, the model has {layers} layers")
        return {layer % layers for layer in self.protected_layers}
