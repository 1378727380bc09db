"""Ranges taken from the numbers themselves, in groups: KIVI (arXiv:2402.02750).

A group of ``g`` numbers stores its smallest value and its step in float16, ``b + 32 / g`` bits a number, and needs no
calibration. ``along="tokens"`` groups one channel over ``g`` tokens (KIVI's "per channel", for keys, whose channels
differ in size); ``along="channels"`` groups ``g`` channels of one token (KIVI's "per token", for values). Each page is
decoded when it is attended to: the parameters differ from token to token and cannot leave the loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from longvid_train.errors import UserError
from longvid_train.kvcache.codec import Codec, Coded, Places
from longvid_train.kvcache.packing import pack, unpack
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import Parameters, Sample, check_bits, check_choice

Along = Literal["tokens", "channels"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenGroupCodec(Codec):
    """Groups of ``group`` tokens in one channel."""

    group: int

    @property
    def strides(self) -> Mapping[str, int]:
        """One range covers ``group`` tokens."""
        return {"scale": self.group, "offset": self.group}

    def encode(self, x: torch.Tensor, places: Places) -> Coded:
        """Codes, and ranges ``(B, H, ceil(T / g), D)``; the last group may be short."""
        count, head_dim = x.shape[-2:]
        missing = -count % self.group
        padded = torch.cat([x, x[..., -1:, :].expand(*x.shape[:2], missing, head_dim)], dim=-2).double()
        grouped = torch.unflatten(padded, -2, (-1, self.group))
        scale, offset = _ranges(grouped, -2, self.bits)
        codes = _codes(grouped, scale.unsqueeze(-2), offset.unsqueeze(-2), self.bits).flatten(-3, -2)[..., :count, :]
        return {"codes": pack(codes, self.bits), "scale": scale, "offset": offset}

    def decode(self, coded: Coded, places: Places) -> torch.Tensor:
        """``scale c + offset`` of each token's group."""
        head_dim, count = coded["scale"].shape[-1], coded["codes"].shape[-2]
        scale, offset = (
            coded[name].float().repeat_interleave(self.group, dim=-2)[..., :count, :] for name in ("scale", "offset")
        )
        return scale * unpack(coded["codes"], self.bits, head_dim) + offset


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroupCodec(Codec):
    """Groups of ``group`` channels of one token; ``None`` is the whole head."""

    group: int | None

    def encode(self, x: torch.Tensor, places: Places) -> Coded:
        """Codes, and ranges ``(B, H, T, D / g)``."""
        grouped = torch.unflatten(x.double(), -1, (-1, self.group or x.shape[-1]))
        scale, offset = _ranges(grouped, -1, self.bits)
        codes = _codes(grouped, scale.unsqueeze(-1), offset.unsqueeze(-1), self.bits).flatten(-2)
        return {"codes": pack(codes, self.bits), "scale": scale, "offset": offset}

    def decode(self, coded: Coded, places: Places) -> torch.Tensor:
        """``scale c + offset`` of each channel's group."""
        scale, offset = (coded[name].float().unsqueeze(-1) for name in ("scale", "offset"))
        count = scale.shape[-2] * (self.group or coded["codes"].shape[-1] * 8 // self.bits)
        codes = unpack(coded["codes"], self.bits, count)
        return (scale * torch.unflatten(codes, -1, (scale.shape[-2], -1)) + offset).flatten(-2)


@dataclass(frozen=True, kw_only=True)
class DynamicGroups:
    """Asymmetric ranges of ``group`` numbers ``along`` tokens or channels.

    Attributes:
        bits: of a code.
        along: which numbers share a range.
        group: how many; ``None`` is the whole head, for ``along="channels"``.
    """

    kind: ClassVar[str] = "dynamic_groups"
    granularity: ClassVar[str] = "group"
    formula: ClassVar[str] = "x^ = scale * code + offset, float16 scale and offset of each group"

    bits: int = 2
    along: Along
    group: int | None = 32

    symmetric: ClassVar[bool] = False
    calibrated: ClassVar[bool] = False
    rotary: ClassVar[Literal["pre", "post"]] = "post"

    def __post_init__(self) -> None:
        """Refuse what cannot be coded."""
        check_bits(self.bits, self.kind)
        check_choice(self.along, ("tokens", "channels"), "along")
        if self.group is not None and self.group < 2:
            raise UserError(f"{self.kind}: group is {self.group}; a group has at least 2 numbers, e.g. 32")
        if self.group is None and self.along == "tokens":
            raise UserError(f"{self.kind}: a group along tokens needs a length; set group, e.g. 32")

    @property
    def block_tokens(self) -> int:
        """A group of tokens is coded at once."""
        return self.group if self.along == "tokens" and self.group is not None else 1

    def check_head_dim(self, head_dim: int) -> None:
        """Refuse groups that do not fill a head.

        Raises:
            UserError: naming both.
        """
        if self.along == "channels" and self.group is not None and head_dim % self.group:
            raise UserError(
                f"{self.kind}: the head dim {head_dim} is not a multiple of group {self.group}; "
                "use a group that divides it"
            )
        if self.along == "channels" and self.group is None and head_dim * self.bits % 8:
            raise UserError(
                f"{self.kind}: head dim {head_dim} at {self.bits} bits does not fill bytes; use 4 or 8 bits"
            )

    def fit(self, sample: Sample, *, separate: bool, rotation: Rotation | None) -> dict[str, torch.Tensor]:
        """There are no parameters."""
        return {}

    def parameter_shapes(self, heads: int, head_dim: int, *, separate: bool) -> dict[str, tuple[int, ...]]:
        """As `fit` returns them."""
        return {}

    def codec(self, parameters: Parameters, *, rotation: Rotation | None) -> Codec:
        """The codec of these settings."""
        if self.along == "tokens":
            assert self.group is not None
            return TokenGroupCodec(bits=self.bits, group=self.group)
        return ChannelGroupCodec(bits=self.bits, group=self.group)


def _ranges(grouped: torch.Tensor, axis: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and smallest value along ``axis``, rounded to float16 as they are stored; a step of 0 becomes 1."""
    low, high = grouped.amin(axis), grouped.amax(axis)
    offset = low.to(torch.float16)
    scale = ((high - offset.double()) / (2**bits - 1)).to(torch.float16)
    return torch.where(scale > 0, scale, 1.0), offset


def _codes(grouped: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, bits: int) -> torch.Tensor:
    levels = ((grouped - offset.double()) / scale.double()).round()
    return levels.clamp(0, 2**bits - 1).to(torch.uint8)
