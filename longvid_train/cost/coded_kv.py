"""Bytes of a quantized cache, to the byte those of `QuantizedKVCache.used_bytes` on a running model.

Nothing is derived here from a scheme's formula: one block of tokens is coded by the schemes themselves, and what they
allocate is counted. ``H`` key-value heads, ``D`` head dim.
"""

from dataclasses import dataclass

import torch

from longvid_train.cost.decoder import DecoderShape
from longvid_train.errors import UserError
from longvid_train.kvcache.codec import KINDS, Codec, Places
from longvid_train.kvcache.layer import QUERY_ROWS
from longvid_train.kvcache.pages import PAGE_TOKENS
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.quantizer import CacheShape
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import Sample, Scheme

_DTYPES = {2: torch.bfloat16, 4: torch.float32}
_INDEX_BYTES = 8
"""Of the padding and the first position of a row, and of a sink's place."""
_NOISE_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class CodedKv:
    """A quantized cache, counted.

    Attributes:
        shape: of the model's cache.
        block_tokens: tokens that leave the recent window together.
        recent_tokens: newest tokens that are kept as they are.
        sink_tokens: first tokens that are kept as they are, beside their codes.
        kinds: whether each token is marked as text or visual.
        value_bytes: of a number that is kept as it is.
        block_bytes: of one row's coded block, in all layers.
        parameter_bytes: static parameters of all layers.
    """

    shape: CacheShape
    block_tokens: int
    recent_tokens: int
    sink_tokens: int
    kinds: bool
    value_bytes: int
    block_bytes: int
    parameter_bytes: int

    def stored_bytes(self, shape: DecoderShape, tokens: int, rows: int) -> int:
        """Codes, whole numbers, what is known of rows, and parameters; ``tokens`` counts a row's padding."""
        assert shape_of(shape) == self.shape, (shape, self.shape)
        if tokens == 0:
            return self.parameter_bytes
        blocks = max(tokens - self.recent_tokens, 0) // self.block_tokens
        whole = tokens - blocks * self.block_tokens + self.sink_tokens
        known = shape.layers * (_INDEX_BYTES * (2 + self.sink_tokens) + tokens * self.kinds)
        a_row = blocks * self.block_bytes + whole * shape.kv_values_a_token * self.value_bytes + known
        return rows * a_row + self.parameter_bytes

    def attention_bytes(self, shape: DecoderShape, queries: int, tokens: int, rows: int) -> int:
        """Scores of a page three times (found, masked, as weights), queries and results in float32, and the tokens that
        are not coded in float32."""
        whole = min(tokens, self.recent_tokens + self.block_tokens + queries)
        group = shape.heads // shape.kv_heads
        query_rows = min(QUERY_ROWS // group * group, queries * group)
        scores = 3 * shape.kv_heads * query_rows * max(whole, min(tokens - whole, PAGE_TOKENS))
        numbers = scores + 2 * queries * shape.query_width + 2 * whole * shape.kv_width
        return 4 * rows * numbers


def coded_kv(policy: CachePolicy, shape: CacheShape, *, value_bytes: int) -> CodedKv:
    """Count a policy on a model.

    Args:
        policy: of the cache; a quantizer's or a preset's.
        shape: of the model's cache.
        value_bytes: of a number as the model makes it, 2 or 4.

    Raises:
        UserError: the policy does not allow the model.
    """
    policy.check_shape(shape.layers, shape.head_dim)
    sizes: dict[tuple[Scheme, Scheme], tuple[int, int]] = {}
    block_bytes = parameter_bytes = 0
    for layer in range(shape.layers):
        schemes = policy.schemes(layer, shape.layers)
        if schemes not in sizes:
            sizes[schemes] = _layer_bytes(schemes, policy, shape, _DTYPES[value_bytes])
        block_bytes += sizes[schemes][0]
        parameter_bytes += sizes[schemes][1]
    return CodedKv(
        shape=shape,
        block_tokens=policy.block_tokens,
        recent_tokens=policy.recent_tokens,
        sink_tokens=policy.sink_tokens,
        kinds=policy.separate_visual,
        value_bytes=value_bytes,
        block_bytes=block_bytes,
        parameter_bytes=parameter_bytes,
    )


def shape_of(decoder: DecoderShape) -> CacheShape:
    """What the cache of a decoder keeps of every token."""
    return CacheShape(layers=decoder.layers, heads=decoder.kv_heads, head_dim=decoder.head_dim)


def check_same_shape(where: str, stored: CacheShape, decoder: DecoderShape) -> None:
    """Refuse a quantizer of another model.

    Raises:
        UserError: naming both shapes.
    """
    if stored != shape_of(decoder):
        raise UserError(f"{where} is for {stored}, the model has {shape_of(decoder)}; calibrate for this model")


def _layer_bytes(
    schemes: tuple[Scheme, Scheme], policy: CachePolicy, shape: CacheShape, dtype: torch.dtype
) -> tuple[int, int]:
    """Bytes of a coded block of one row, and of the parameters, of a layer."""
    codecs = [_codec_of_noise(scheme, policy, shape) for scheme in schemes]
    block = torch.zeros(1, shape.heads, policy.block_tokens, shape.head_dim, dtype=dtype)
    index = torch.arange(policy.block_tokens)[None]
    places = Places(index, torch.zeros_like(index, dtype=torch.uint8) if policy.separate_visual else None)
    stored = [tensor for codec in codecs for tensor in codec.encode(block, places).values()]
    return sum(tensor.nbytes for tensor in stored), sum(codec.parameter_bytes() for codec in codecs)


def _codec_of_noise(scheme: Scheme, policy: CachePolicy, shape: CacheShape) -> Codec:
    """A codec whose parameters were fitted to noise: as large as any other of its scheme."""
    vectors = torch.randn(_NOISE_TOKENS, shape.heads, shape.head_dim, generator=torch.Generator().manual_seed(0))
    low, high = (extreme.expand(KINDS, -1, -1) for extreme in (vectors.amin(0), vectors.amax(0)))
    index = torch.arange(_NOISE_TOKENS)
    noise = Sample(
        name="noise",
        vectors=vectors,
        positions=index,
        kinds=(index % KINDS).to(torch.uint8),
        low=low,
        high=high,
        weights=torch.ones(shape.heads, shape.head_dim, dtype=torch.float64),
    )
    rotation = Rotation(torch.ones(shape.head_dim // 2)) if scheme.rotary == "pre" else None
    fitted = scheme.fit(noise, separate=policy.separate_visual, rotation=rotation)
    return scheme.codec(fitted, rotation=rotation)
