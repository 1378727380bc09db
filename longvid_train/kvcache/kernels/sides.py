"""What the kernels need to know of a codec: how its codes are packed, what is static, and what each token brings.

A coded number is ``a level[c] + o``, with ``level[c] = c`` where levels are even: ``a`` and ``o`` are static (folded
into the query, or applied to the result), or stored for tokens or groups. ``H`` key-value heads, ``D`` head dim.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from longvid_train.kvcache.affine import AffineCodec
from longvid_train.kvcache.codec import Codec
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.schemes.bias_removed import BiasRemovedCodec
from longvid_train.kvcache.schemes.dynamic_groups import ChannelGroupCodec, TokenGroupCodec
from longvid_train.kvcache.schemes.lloyd_max import LloydMaxCodec

Stored = Literal["nothing", "token gain", "channel groups", "token groups"]

THREE_BIT_WORD = 3
"""Bytes that 8 codes of 3 bits fill."""


def word_bytes(bits: int, channels: int) -> int:
    """Bytes a kernel takes at once of ``channels`` codes: the widest words that fit; 0 if none does."""
    row_bits = bits * channels
    if bits == 3:
        return THREE_BIT_WORD if channels % 8 == 0 else 0
    return next((size for size in (4, 2, 1) if row_bits % (8 * size) == 0), 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """Keys or values of a layer, for the kernels.

    Attributes:
        bits: of a code.
        stored: what is stored beside the codes.
        group: numbers that share a stored scale; 0 where there is none.
        scale: ``(H, D)`` float32 static ``a``; ``None`` where it is stored.
        offset: ``(H, D)`` float32 static ``o``.
        levels: ``(2^bits,)`` float32; ``None`` for even ones.
        mean: ``(H, D)`` float32, added before rotation; keys only.
        rotation: that keys need at their positions.
        rotates_codes: keys were coded before rotation; otherwise only the mean is rotated.
    """

    bits: int
    stored: Stored = "nothing"
    group: int = 0
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    levels: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    rotation: Rotation | None = None
    rotates_codes: bool = False

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Stored tensors, in the order of the kernels' page table."""
        return ("codes", *{"nothing": (), "token gain": ("gain",)}.get(self.stored, ("scale", "offset")))


def side_of(codec: Codec, heads: int, head_dim: int) -> Side | str:
    """The codec for the kernels, or in words why they cannot read it."""
    if isinstance(codec, BiasRemovedCodec):
        rest = side_of(codec.rest, heads, head_dim)
        if isinstance(rest, str) or len(codec.mean) > 1:
            return rest if isinstance(rest, str) else _KINDS
        return Side(bits=rest.bits, scale=rest.scale, offset=rest.offset, mean=codec.mean[0], rotation=codec.rotation)
    if isinstance(codec, AffineCodec):
        if len(codec.scale) > 1:
            return _KINDS
        scale, offset = (part[0].expand(heads, head_dim).contiguous() for part in (codec.scale, codec.offset))
        return Side(bits=codec.bits, scale=scale, offset=offset)
    if isinstance(codec, LloydMaxCodec):
        return _lloyd_side(codec)
    if isinstance(codec, ChannelGroupCodec):
        return Side(bits=codec.bits, stored="channel groups", group=codec.group or head_dim)
    if isinstance(codec, TokenGroupCodec):
        return Side(bits=codec.bits, stored="token groups", group=codec.group)
    return f"{type(codec).__name__} stores no codes the kernels read"


_KINDS = "text and visual tokens have parameters of their own (separate_visual)"


def _lloyd_side(codec: LloydMaxCodec) -> Side | str:
    if len(codec.mean) > 1:
        return _KINDS
    rotates = codec.rotation is not None
    return Side(
        bits=codec.bits,
        stored="token gain" if codec.gain else "nothing",
        scale=codec.deviation[0],
        offset=torch.zeros_like(codec.mean[0]) if rotates else codec.mean[0],
        levels=codec.levels[0, 0],
        mean=codec.mean[0] if rotates else None,
        rotation=codec.rotation,
        rotates_codes=rotates,
    )
