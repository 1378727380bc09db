"""Evenly spaced levels with static parameters: ``x^ = S c + m``, and what that saves in attention.

With ``S`` and ``m`` the same for every token, ``q . x^ = (q S) . c + q . m`` and ``sum_t p_t x^_t = S (sum_t p_t c_t) +
m sum_t p_t``: the loop over tokens sees codes only.
"""

from dataclasses import dataclass

import torch

from longvid_train.kvcache.codec import Codec, Coded, Places, by_kind, choose_kind, split_kinds
from longvid_train.kvcache.packing import pack, unpack


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineCodec(Codec):
    """Static scale and offset.

    Attributes:
        scale: ``(K, H or 1, D or 1)`` float32 ``S``, above 0.
        offset: the same shape, ``m``: the lowest level.
        head_dim: ``D``.
    """

    scale: torch.Tensor
    offset: torch.Tensor
    head_dim: int

    def encode(self, x: torch.Tensor, places: Places) -> Coded:
        """``c = clamp(round((x - m) / S), 0, 2^b - 1)``, ties to even."""
        scale, offset = by_kind(self.scale, places).double(), by_kind(self.offset, places).double()
        return {"codes": self._packed(((x.double() - offset) / scale).round())}

    def decode(self, coded: Coded, places: Places) -> torch.Tensor:
        """``S c + m``."""
        return by_kind(self.scale, places) * self._codes(coded) + by_kind(self.offset, places)

    def scores(self, query: torch.Tensor, coded: Coded, places: Places) -> torch.Tensor:
        """``(q S) . c + q . m``."""
        codes = self._codes(coded).transpose(-1, -2)
        return choose_kind(
            [
                (query * scale[:, None, :]) @ codes + (query * offset[:, None, :]).sum(-1, keepdim=True)
                for scale, offset in zip(self.scale, self.offset, strict=True)
            ],
            places,
        )

    def mix(self, weights: torch.Tensor, coded: Coded, places: Places) -> torch.Tensor:
        """``S (p . c) + m sum p``."""
        codes = self._codes(coded)
        mixed = torch.zeros((), device=weights.device)
        parts = split_kinds(weights, len(self.scale), places)
        for part, scale, offset in zip(parts, self.scale, self.offset, strict=True):
            mixed = mixed + scale[:, None, :] * (part @ codes) + offset[:, None, :] * part.sum(-1, keepdim=True)
        return mixed

    def _packed(self, levels: torch.Tensor) -> torch.Tensor:
        return pack(levels.clamp(0, 2**self.bits - 1).to(torch.uint8), self.bits)

    def _codes(self, coded: Coded) -> torch.Tensor:
        """``(B, H, T, D)`` float32 whole numbers."""
        return unpack(coded["codes"], self.bits, self.head_dim).float()
