"""Levels where the numbers are, and one gain a token: ``x^ = mu_d + g_t sigma_d L[c]``.

Mean and standard deviation of every channel are static; the ``2^b`` levels ``L`` are shared by a layer and fitted to
the normalised sample by Lloyd's algorithm (Lloyd 1982, Max 1960). With ``gain`` every token and head stores one float16
``g_t``, the least-squares factor of its own levels: ``b + 16 / D`` bits a number. Keys are best coded before rotation
(``rotary="pre"``), where channels keep their mean and spread at every position; a page of them is rotated when it is
attended to. Otherwise ``q . x^ = q . mu + g_t (q sigma) . L[c]``, and the static parameters leave the loop over tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from longvid_train.errors import UserError
from longvid_train.kvcache.codec import Codec, Coded, Places, by_kind, choose_kind, split_kinds
from longvid_train.kvcache.packing import pack, unpack
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import (
    Parameters,
    Sample,
    check_bits,
    check_choice,
    check_rotation,
    in_one_row,
    kinds_of,
    out_of_row,
)

ITERATIONS = 50
MOST_BITS = 4
"""A wider code has little to gain from uneven levels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LloydMaxCodec(Codec):
    """Static mean, deviation and levels.

    Attributes:
        mean: ``(K, H, D)`` float32.
        deviation: ``(K, H, D)`` float32, above 0.
        levels: ``(K, 1, 2^b)`` float32, rising.
        gain: store a factor for every token and head.
        rotation: given where keys are coded before rotation.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    levels: torch.Tensor
    gain: bool
    rotation: Rotation | None

    def encode(self, x: torch.Tensor, places: Places) -> Coded:
        """Nearest levels of the normalised vectors; with a gain, of those brought to the levels' size first."""
        unrotated = x.double() if self.rotation is None else self.rotation.remove(x.double(), places.positions)
        normal = (unrotated - by_kind(self.mean, places).double()) / by_kind(self.deviation, places).double()
        levels = by_kind(self.levels, places).double()
        size = root_mean_square(normal) if self.gain else torch.ones_like(normal[..., :1])
        codes = nearest_level(normal / size, levels)
        stored = {"codes": pack(codes, self.bits)}
        if self.gain:
            chosen = _look_up(levels, codes)
            factor = (normal * chosen).sum(-1) / chosen.square().sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
            stored["gain"] = factor.to(torch.float16)
        return stored

    def decode(self, coded: Coded, places: Places) -> torch.Tensor:
        """``mu + g sigma L[c]``, rotated where it was coded before rotation."""
        chosen = _look_up(by_kind(self.levels, places), self._codes(coded))
        spread = by_kind(self.deviation, places) * chosen
        if self.gain:
            spread = spread * coded["gain"].float().unsqueeze(-1)
        decoded = by_kind(self.mean, places) + spread
        return decoded if self.rotation is None else self.rotation.apply(decoded, places.positions)

    def scores(self, query: torch.Tensor, coded: Coded, places: Places) -> torch.Tensor:
        """``q . mu + g (q sigma) . L[c]`` where there is no rotation in between."""
        if self.rotation is not None:
            return super().scores(query, coded, places)
        codes = self._codes(coded)
        found = choose_kind(
            [
                (query * deviation[:, None, :]) @ levels[0][codes.int()].transpose(-1, -2)
                for deviation, levels in zip(self.deviation, self.levels, strict=True)
            ],
            places,
        )
        if self.gain:
            found = found * coded["gain"].float().unsqueeze(-2)
        bias = [(query * mean[:, None, :]).sum(-1, keepdim=True).expand_as(found) for mean in self.mean]
        return found + choose_kind(bias, places)

    def mix(self, weights: torch.Tensor, coded: Coded, places: Places) -> torch.Tensor:
        """``sigma ((p g) . L[c]) + mu sum p`` where there is no rotation in between."""
        if self.rotation is not None:
            return super().mix(weights, coded, places)
        codes = self._codes(coded).int()
        mixed = torch.zeros((), device=weights.device)
        for kind, part in enumerate(split_kinds(weights, len(self.mean), places)):
            scaled = part * coded["gain"].float().unsqueeze(-2) if self.gain else part
            mixed = mixed + self.deviation[kind][:, None, :] * (scaled @ self.levels[kind, 0][codes])
            mixed = mixed + self.mean[kind][:, None, :] * part.sum(-1, keepdim=True)
        return mixed

    def _codes(self, coded: Coded) -> torch.Tensor:
        return unpack(coded["codes"], self.bits, self.mean.shape[-1])


@dataclass(frozen=True, kw_only=True)
class LloydMax:
    """Non-uniform levels, shared by a layer.

    Attributes:
        bits: of a code, at most 4.
        gain: one float16 factor a token and head.
        rotary: ``"pre"`` takes the rotary embedding off first; keys only.
    """

    kind: ClassVar[str] = "lloyd_max"
    granularity: ClassVar[str] = "channel + token gain"
    formula: ClassVar[str] = "x^ = [R(position)] (mean + [gain *] deviation * levels[code])"

    bits: int = 2
    gain: bool = True
    rotary: Literal["pre", "post"] = "post"

    symmetric: ClassVar[bool] = False
    calibrated: ClassVar[bool] = True
    block_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be coded."""
        check_bits(self.bits, self.kind)
        check_choice(self.rotary, ("pre", "post"), "rotary")
        if self.bits > MOST_BITS:
            raise UserError(f"{self.kind}: bits is {self.bits}; at most {MOST_BITS}, or use static_channel")

    def check_head_dim(self, head_dim: int) -> None:
        """Every head dim will do."""

    def fit(self, sample: Sample, *, separate: bool, rotation: Rotation | None) -> dict[str, torch.Tensor]:
        """``mean`` and ``deviation (K, H, D)`` and ``levels (K, 1, 2^b)``."""
        fitted = [self._fit_group(group, rotation) for group in sample.groups(separate)]
        mean, deviation, levels = (torch.stack(column).float() for column in zip(*fitted, strict=True))
        return {"mean": mean, "deviation": deviation, "levels": levels[:, None, :]}

    def parameter_shapes(self, heads: int, head_dim: int, *, separate: bool) -> dict[str, tuple[int, ...]]:
        """As `fit` returns them."""
        return {
            **dict.fromkeys(("mean", "deviation"), (kinds_of(separate), heads, head_dim)),
            "levels": (kinds_of(separate), 1, 2**self.bits),
        }

    def codec(self, parameters: Parameters, *, rotation: Rotation | None) -> Codec:
        """Bind mean, deviation and levels."""
        return LloydMaxCodec(
            bits=self.bits,
            mean=parameters["mean"],
            deviation=parameters["deviation"],
            levels=parameters["levels"],
            gain=self.gain,
            rotation=self._rotation(rotation),
        )

    def _rotation(self, rotation: Rotation | None) -> Rotation | None:
        return check_rotation(rotation, self.kind) if self.rotary == "pre" else None

    def _fit_group(self, sample: Sample, rotation: Rotation | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        taken_off, vectors, weights = self._rotation(rotation), sample.vectors.double(), sample.weights
        if taken_off is not None:
            row, positions = in_one_row(sample)
            vectors, weights = out_of_row(taken_off.remove(row, positions)), pair_mean(weights)
        mean = vectors.mean(0)
        deviation = (vectors - mean).square().mean(0).sqrt()
        deviation = torch.where(deviation > 0, deviation, 1.0)
        normal = (vectors - mean) / deviation
        if self.gain:
            normal = normal / root_mean_square(normal)
        importance = (weights * deviation.square()).expand_as(normal)
        return mean, deviation, lloyd_levels(normal.flatten(), importance.flatten(), self.bits)


def lloyd_levels(numbers: torch.Tensor, weights: torch.Tensor, bits: int) -> torch.Tensor:
    """``2^b`` levels with a locally least weighted squared error, from the quantiles of a normal distribution.

    Args:
        numbers: ``(M,)`` float64.
        weights: ``(M,)`` float64, at least 0.
        bits: ``b``.

    Returns:
        ``(2^b,)`` float64, rising.
    """
    numbers, order = numbers.sort()
    weights = weights[order]
    zero = numbers.new_zeros(1)
    mass = torch.cat([zero, weights.cumsum(0)])
    moment = torch.cat([zero, (weights * numbers).cumsum(0)])
    shares = (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    levels = torch.special.ndtri(shares)
    for _ in range(ITERATIONS):
        inner = torch.searchsorted(numbers, (levels[1:] + levels[:-1]) / 2)
        edges = torch.cat([torch.tensor([0]), inner, torch.tensor([len(numbers)])])
        inside = mass[edges[1:]] - mass[edges[:-1]]
        means = (moment[edges[1:]] - moment[edges[:-1]]) / torch.where(inside > 0, inside, 1.0)
        levels = torch.where(inside > 0, means, levels)
    return levels


def nearest_level(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Index of the nearest of rising ``levels (..., 1 or more, 2^b)``, uint8 of ``x``'s shape; the lower at a tie."""
    thresholds = (levels[..., 1:] + levels[..., :-1]) / 2
    above = [x > thresholds[..., step : step + 1] for step in range(thresholds.shape[-1])]
    return torch.stack([passed.to(torch.uint8) for passed in above]).sum(0, dtype=torch.uint8)


def _look_up(levels: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """``levels (1 or B, 1, 1 or T, 2^b)`` at ``codes (B, H, T, D)``."""
    if levels.shape[:3] == (1, 1, 1):
        return levels[0, 0, 0][codes.int()]
    return torch.gather(levels.expand(*codes.shape[:3], -1), -1, codes.long())


def root_mean_square(x: torch.Tensor) -> torch.Tensor:
    """``(..., 1)``; 1 where a vector is zero."""
    size = x.square().mean(-1, keepdim=True).sqrt()
    return torch.where(size > 0, size, 1.0)


def pair_mean(weights: torch.Tensor) -> torch.Tensor:
    """Weights ``(H, D)`` of rotated channels for channels before rotation: the mean of each rotated pair."""
    first, second = weights.chunk(2, dim=-1)
    return ((first + second) / 2).repeat(1, 2)
