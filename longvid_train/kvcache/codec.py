"""What every quantizer of one tensor (the keys, or the values, of one layer) can do.

``B`` rows, ``H`` key-value heads, ``T`` tokens, ``D`` head dim, ``R`` query rows (query heads of a group times
queries), ``K`` kinds of token (1, or 2 where text and visual tokens have parameters of their own).
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from longvid_train.kvcache.rotation import Rotation

Coded = dict[str, torch.Tensor]
"""What is stored of ``T`` tokens, by name: each ``(B, H, ceil(T / stride), ...)``, see `Codec.strides`."""

TEXT = 0
VISUAL = 1
KINDS = 2


@dataclass(frozen=True, eq=False)
class Places:
    """Where the tokens of a piece stand.

    Attributes:
        positions: ``(B, T)`` int64 rotary positions; padding on the left has negative ones.
        kinds: ``(B, T)`` uint8, `TEXT` or `VISUAL`; ``None`` where parameters are shared.
    """

    positions: torch.Tensor
    kinds: torch.Tensor | None = None

    def slice(self, start: int, stop: int) -> "Places":
        """The tokens ``start`` to ``stop - 1`` of the piece."""
        kinds = None if self.kinds is None else self.kinds[:, start:stop]
        return Places(self.positions[:, start:stop], kinds)


@dataclass(frozen=True, kw_only=True, eq=False)
class Codec(ABC):
    """Parameters bound to a way of coding. Subclasses are frozen dataclasses whose tensors are their parameters."""

    bits: int

    @property
    def strides(self) -> Mapping[str, int]:
        """Tokens that one entry of each stored tensor covers; names that are missing cover one."""
        return {}

    @abstractmethod
    def encode(self, x: torch.Tensor, places: Places) -> Coded:
        """Codes of ``x (B, H, T, D)``; computed in float64, so that they are those of exact arithmetic."""

    @abstractmethod
    def decode(self, coded: Coded, places: Places) -> torch.Tensor:
        """``(B, H, T, D)`` float32."""

    def scores(self, query: torch.Tensor, coded: Coded, places: Places) -> torch.Tensor:
        """Dot products with the coded keys.

        Args:
            query: ``(B, H, R, D)`` float32.
            coded: of one page.
            places: of its tokens.

        Returns:
            ``(B, H, R, T)`` float32.
        """
        return query @ self.decode(coded, places).transpose(-1, -2)

    def mix(self, weights: torch.Tensor, coded: Coded, places: Places) -> torch.Tensor:
        """Sum of the coded values by weight.

        Args:
            weights: ``(B, H, R, T)`` float32.
            coded: of one page.
            places: of its tokens.

        Returns:
            ``(B, H, R, D)`` float32.
        """
        return weights @ self.decode(coded, places)

    def to(self, device: torch.device | str) -> Self:
        """The same codec with its parameters on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), (torch.Tensor, Rotation))
        }
        return dataclasses.replace(self, **moved)

    def parameter_bytes(self) -> int:
        """Bytes of the parameters, which all tokens share."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        tensors = (value.inv_freq if isinstance(value, Rotation) else value for value in values)
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def by_kind(parameter: torch.Tensor, places: Places) -> torch.Tensor:
    """Parameters of each token: ``(K, h, d)`` to ``(B or 1, h, T or 1, d)``."""
    if len(parameter) == 1:
        return parameter[:, :, None, :]
    assert places.kinds is not None, "separate parameters need the kind of every token"
    return parameter[places.kinds.long()].transpose(1, 2)


def choose_kind(candidates: list[torch.Tensor], places: Places) -> torch.Tensor:
    """Of one ``(B, H, R, T)`` tensor a kind, the entries of each token's own kind."""
    if len(candidates) == 1:
        return candidates[0]
    assert places.kinds is not None, "separate parameters need the kind of every token"
    return torch.where(places.kinds[:, None, None, :] == TEXT, candidates[TEXT], candidates[VISUAL])


def split_kinds(weights: torch.Tensor, kinds: int, places: Places) -> list[torch.Tensor]:
    """``(B, H, R, T)`` weights for each kind: zero at tokens of another kind."""
    if kinds == 1:
        return [weights]
    assert places.kinds is not None, "separate parameters need the kind of every token"
    return [weights * (places.kinds == kind)[:, None, None, :] for kind in range(kinds)]
