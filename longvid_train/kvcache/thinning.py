"""A full-precision cache from which tokens can be taken in the middle, without moving the others' positions.

Keys are cached rotated, so a token's position lives in its key; what is lost with a removed token is only the link from
the length of the cache to the next position. These layers keep it: their sequence length counts removed tokens, their
mask does not.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class ThinningLayer(DynamicLayer):
    """See the module.

    Attributes:
        removed: tokens taken out.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.removed = 0

    def get_seq_length(self) -> int:
        """Tokens read so far, removed ones too: the next token's position."""
        return int(super().get_seq_length()) + self.removed

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of a mask over what is left and the new tokens."""
        return int(super().get_seq_length()) + query_length, 0

    def remove(self, kept: torch.Tensor) -> None:
        """Keep the tokens ``kept``, ``(T',)`` int64 ascending, of those that are left."""
        self.removed += self.keys.shape[-2] - len(kept)
        kept = kept.to(self.keys.device)
        self.keys, self.values = self.keys.index_select(-2, kept), self.values.index_select(-2, kept)

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.removed = 0


class ThinningCache(Cache):
    """One `ThinningLayer` a decoder layer.

    Args:
        layers: of the decoder.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[ThinningLayer() for _ in range(layers)])

    def remove(self, kept: torch.Tensor) -> None:
        """See `ThinningLayer.remove`."""
        for layer in self._thinning_layers():
            layer.remove(kept)

    @property
    def held(self) -> int:
        """Tokens that are left."""
        first = self._thinning_layers()[0]
        return first.get_seq_length() - first.removed

    def _thinning_layers(self) -> list[Any]:
        return list(self.layers)
