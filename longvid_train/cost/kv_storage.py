"""Bytes a KV cache keeps, by how it stores its numbers, and what attention to it takes beside."""

from dataclasses import dataclass
from typing import Protocol

from longvid_train.cost.decoder import DecoderShape


class KvStorage(Protocol):
    """How a cache stores keys and values."""

    def stored_bytes(self, shape: DecoderShape, tokens: int, rows: int) -> int:
        """Bytes of ``rows`` sequences of ``tokens`` tokens, metadata included."""
        ...

    def attention_bytes(self, shape: DecoderShape, queries: int, tokens: int, rows: int) -> int:
        """The most that one layer keeps alive to let ``queries`` queries a row attend to ``tokens`` tokens, beside
        queries, new keys and values, the cache and the mask."""
        ...


@dataclass(frozen=True, kw_only=True)
class PlainKv:
    """Keys and values as the model makes them.

    Attributes:
        value_bytes: of one number: 2 for 16-bit types.
    """

    value_bytes: int = 2

    def stored_bytes(self, shape: DecoderShape, tokens: int, rows: int) -> int:
        """``2 L k`` numbers a token."""
        return rows * tokens * shape.kv_values_a_token * self.value_bytes

    def attention_bytes(self, shape: DecoderShape, queries: int, tokens: int, rows: int) -> int:
        """SDPA's mask as numbers, and keys and values repeated for every query head, as transformers does where there
        is a mask and heads are grouped."""
        repeated = 2 * tokens * shape.query_width if 1 < shape.kv_heads < shape.heads else 0
        return rows * self.value_bytes * (queries * tokens + repeated)
