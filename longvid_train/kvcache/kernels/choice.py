"""Which caches the kernels decode: an explicit choice, and in words why not.

| | kernels | page by page in torch |
|---|---|---|
| device | CUDA with Triton | any |
| schemes | static_channel, intp, bias_removed, lloyd_max, dynamic_groups (along tokens: keys only) | all |
| parameters | shared by all tokens | also of text and visual tokens apart |
| queries | at most `MOST_ROWS` rows: decoding steps | a chunk of a prompt too |
"""

import importlib.util
import os
from typing import TYPE_CHECKING, Literal

import torch

from longvid_train.errors import UserError, nearest
from longvid_train.kvcache.codec import Codec
from longvid_train.kvcache.kernels.sides import Side, side_of, word_bytes

if TYPE_CHECKING:
    from longvid_train.kvcache.kernels.decoder import PageDecoder

Decoding = Literal["auto", "torch", "triton"]
DECODINGS: tuple[Decoding, ...] = ("auto", "torch", "triton")

MOST_ROWS = 64
"""Query rows (queries times heads of a group) of a decoding step; more of them go through matrix products in torch."""
MOST_HEAD_DIM = 256
LEAST_TOKEN_GROUP = 16


def page_decoder(
    keys: Codec,
    values: Codec,
    *,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    decoding: Decoding,
) -> "PageDecoder | None":
    """The decoder of a layer, or ``None`` where pages go through torch.

    Args:
        keys: codec of the keys, on ``device``.
        values: codec of the values.
        heads: key-value heads.
        head_dim: of each.
        dtype: of the model.
        device: of the cache.
        decoding: ``"auto"`` takes the kernels on CUDA where the module's table allows it; ``"triton"`` insists on them.

    Raises:
        UserError: ``"triton"``, and the kernels cannot; it says why.
    """
    if decoding == "torch" or (decoding == "auto" and device.type != "cuda"):
        return None
    refusal = _device_refusal(device) or refusal_of(keys, values, heads=heads, head_dim=head_dim)
    if refusal is not None:
        if decoding == "triton":
            raise UserError(f"decoding: triton cannot read this cache: {refusal}; use decoding: torch, or auto")
        return None
    from longvid_train.kvcache.kernels.decoder import PageDecoder

    sides = [side_of(codec, heads, head_dim) for codec in (keys, values)]
    assert isinstance(sides[0], Side) and isinstance(sides[1], Side)
    return PageDecoder(sides[0], sides[1], heads=heads, head_dim=head_dim, exact=dtype == torch.float32)


def check_decoding(decoding: Decoding) -> Decoding:
    """Refuse a word that is no way of decoding.

    Raises:
        UserError: naming it.
    """
    if decoding not in DECODINGS:
        hint = nearest(str(decoding), DECODINGS) or "."
        raise UserError(f"decoding '{decoding}' is unknown{hint} Use one of {', '.join(DECODINGS)}")
    return decoding


def refusal_of(keys: Codec, values: Codec, *, heads: int, head_dim: int) -> str | None:
    """In words why the kernels cannot read a cache; ``None`` if they can."""
    for name, codec in (("keys", keys), ("values", values)):
        side = side_of(codec, heads, head_dim)
        refusal = side if isinstance(side, str) else _side_refusal(side, head_dim)
        if refusal is not None:
            return f"{name}: {refusal}"
        if name == "values" and isinstance(side, Side) and side.stored == "token groups":
            return "values: groups along tokens are read for keys only"
    return None


def _side_refusal(side: Side, head_dim: int) -> str | None:
    together = head_dim // 2 if side.rotates_codes else head_dim
    if head_dim > MOST_HEAD_DIM or not word_bytes(side.bits, together):
        return f"a head dim of {head_dim} at {side.bits} bits is not read"
    if side.stored == "token groups" and side.group % LEAST_TOKEN_GROUP:
        return f"groups of {side.group} tokens are not a multiple of {LEAST_TOKEN_GROUP}"
    return None


def _device_refusal(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return None if device.type == "cuda" or interpreted else f"it is on {device.type}, the kernels run on CUDA"
