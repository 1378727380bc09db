"""A KIVI cache as its authors' code keeps it (arXiv:2402.02750; github.com/jy-yuan/KIVI, models/llama_kivi.py).

Keys are coded a channel over groups of tokens, values a token over groups of channels; smallest value and step in
float16. The newest tokens stay as they are, in two different ways: up to ``residual`` keys gather and are coded
together when there are as many; the values' window slides, one old value is coded for each new one. There are
no sinks, and nothing is coded twice. Attention gets everything decoded at every step. ``B`` rows, ``H`` heads, ``T``
tokens, ``D`` head dim.
"""

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from longvid_train.kvcache.codec import Codec, Coded, Places
from longvid_train.kvcache.schemes.dynamic_groups import DynamicGroups


class KiviLayer(CacheLayerMixin):
    """See the module.

    Args:
        bits: of a code.
        group: tokens of a key's group, channels of a value's.
        residual: a multiple of ``group``.
    """

    is_sliding = False

    def __init__(self, *, bits: int = 2, group: int = 32, residual: int = 128) -> None:
        super().__init__()
        assert residual % group == 0, (residual, group)
        self._key_codec = DynamicGroups(bits=bits, along="tokens", group=group).codec({}, rotation=None)
        self._value_codec = DynamicGroups(bits=bits, along="channels", group=group).codec({}, rotation=None)
        self._residual = residual

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take shape, dtype and device from the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._coded_keys = self._key_codec.encode(self.keys, _nowhere(self.keys))
        self._coded_values = self._value_codec.encode(self.values, _nowhere(self.values))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take new tokens ``(B, H, T, D)``; all keys and values, old ones decoded. A prompt attends to itself."""
        first = not self.is_initialized
        if first:
            self.lazy_initialization(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        seen = (key_states, value_states) if first else self._everything()
        whole = self.keys.shape[2] // self._residual * self._residual
        self._coded_keys = _joined(self._coded_keys, self._key_codec, self.keys[:, :, :whole])
        self.keys = self.keys[:, :, whole:].clone()
        old = max(self.values.shape[2] - self._residual, 0)
        self._coded_values = _joined(self._coded_values, self._value_codec, self.values[:, :, :old])
        self.values = self.values[:, :, old:].clone()
        return seen

    def coded_bytes(self) -> tuple[int, int]:
        """Allocated bytes of codes and ranges, and numbers that they stand for."""
        sides = (self._coded_keys, self._coded_values)
        stored = sum(tensor.nbytes for coded in sides for tensor in coded.values())
        rows, heads, _, head_dim = self.keys.shape
        return stored, sum(coded["codes"].shape[2] for coded in sides) * rows * heads * head_dim

    def exact_bytes(self) -> int:
        """Bytes of the newest tokens."""
        return self.keys.nbytes + self.values.nbytes

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask over the cache and the new tokens, and the index of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens a row."""
        return self._coded_keys["codes"].shape[2] + self.keys.shape[2] if self.is_initialized else 0

    def get_max_length(self) -> int:
        """There is no limit."""
        return -1

    def _everything(self) -> tuple[torch.Tensor, torch.Tensor]:
        decoded_keys = self._key_codec.decode(self._coded_keys, _nowhere(self.keys)).to(self.dtype)
        decoded_values = self._value_codec.decode(self._coded_values, _nowhere(self.values)).to(self.dtype)
        return torch.cat([decoded_keys, self.keys], dim=2), torch.cat([decoded_values, self.values], dim=2)


def _joined(coded: Coded, codec: Codec, new: torch.Tensor) -> Coded:
    if not new.shape[2]:
        return coded
    added = codec.encode(new, _nowhere(new))
    return {name: torch.cat([tensor, added[name]], dim=2) for name, tensor in coded.items()}


def _nowhere(x: torch.Tensor) -> Places:
    """These codecs do not look at positions."""
    return Places(torch.zeros(len(x), x.shape[2], dtype=torch.int64))
