"""Bytes a KV cache keeps, by how it stores its numbers."""

import math
from dataclasses import dataclass
from typing import Protocol

from longvid_train.cost.decoder import DecoderShape


class KvStorage(Protocol):
    """How a cache stores keys and values."""

    def stored_bytes(self, shape: DecoderShape, tokens: int, rows: int) -> int:
        """Bytes of ``rows`` sequences of ``tokens`` tokens, metadata included."""
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


@dataclass(frozen=True, kw_only=True)
class StaticCodes:
    """Codes with a scale and a zero point a channel that calibration fixed: no metadata grows with the tokens.

    Attributes:
        key_bits: of a key's number; 1, 2, 3, 4 or 8.
        value_bits: of a value's number.
        sink_tokens: first tokens kept as they are.
        recent_tokens: last tokens kept as they are.
        value_bytes: of a number that is kept as it is.
        parameter_bytes: of a scale or a zero point.
    """

    key_bits: int
    value_bits: int
    sink_tokens: int = 0
    recent_tokens: int = 0
    value_bytes: int = 2
    parameter_bytes: int = 2

    def stored_bytes(self, shape: DecoderShape, tokens: int, rows: int) -> int:
        """Codes, whole numbers, and one scale and zero point for each channel of each layer."""
        whole = min(tokens, self.sink_tokens + self.recent_tokens)
        coded = tokens - whole
        bits = self.key_bits + self.value_bits
        codes = shape.layers * math.ceil(coded * shape.kv_width * bits / 8)
        parameters = 2 * shape.kv_values_a_token * self.parameter_bytes
        return rows * (codes + whole * shape.kv_values_a_token * self.value_bytes) + parameters
