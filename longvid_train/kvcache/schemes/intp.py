"""INTP's quantizer to the letter (INTP, Eq. 3.7): one scale ``S`` and one zero point ``Z`` for a whole layer.

``x^ = S (clamp(round(x / S) - Z, p_min, p_max) + Z)``, with ``p`` from ``-2^(b-1)`` to ``2^(b-1) - 1``: at 2 bits the
bins are -2, -1, 0, 1. The equation prints floor brackets and is read as rounding to the nearest (ties to even). The
paper does not say how a calibration set gives ``S`` and ``Z``: ``minmax`` covers the range, ``mse`` clips it where the
squared error of the sample is least, that of keys weighted by ``E[q_d^2]``.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from longvid_train.kvcache.affine import AffineCodec
from longvid_train.kvcache.codec import Codec, Coded, Places, by_kind
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import Parameters, Sample, kinds_of
from longvid_train.kvcache.schemes.searched import SearchedLevels

GRID = 16
GRID_NUMBERS = 2**16
"""Numbers of the sample, evenly spaced, that the grid search looks at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class IntpCodec(AffineCodec):
    """`AffineCodec` with ``m = S (p_min + Z)``, coded as the equation is written.

    Attributes:
        zero: ``(K, 1, 1)`` float32 whole numbers ``Z``.
    """

    zero: torch.Tensor

    def encode(self, x: torch.Tensor, places: Places) -> Coded:
        """``clamp(round(x / S) - Z, p_min, p_max) - p_min``."""
        scale, zero = by_kind(self.scale, places).double(), by_kind(self.zero, places).double()
        return {"codes": self._packed((x.double() / scale).round() - zero + 2 ** (self.bits - 1))}


@dataclass(frozen=True, kw_only=True)
class Intp(SearchedLevels):
    """Eq. 3.7 with static parameters for each layer."""

    kind: ClassVar[str] = "intp"
    granularity: ClassVar[str] = "layer"
    formula: ClassVar[str] = "x^ = scale * (code - 2^(bits-1) + zero)"
    rotary: ClassVar[Literal["pre", "post"]] = "post"

    def fit(self, sample: Sample, *, separate: bool, rotation: Rotation | None) -> dict[str, torch.Tensor]:
        """``scale`` and ``zero``, each ``(K, 1, 1)``, and ``head_dim``."""
        fitted = [self._fit_group(group) for group in sample.groups(separate)]
        scale, zero = (torch.tensor(column, dtype=torch.float32)[:, None, None] for column in zip(*fitted, strict=True))
        return {"scale": scale, "zero": zero, "head_dim": torch.tensor(float(sample.vectors.shape[-1]))}

    def parameter_shapes(self, heads: int, head_dim: int, *, separate: bool) -> dict[str, tuple[int, ...]]:
        """As `fit` returns them."""
        return {**dict.fromkeys(("scale", "zero"), (kinds_of(separate), 1, 1)), "head_dim": ()}

    def codec(self, parameters: Parameters, *, rotation: Rotation | None) -> Codec:
        """Bind ``S`` and ``Z``."""
        scale, zero = parameters["scale"], parameters["zero"]
        return IntpCodec(
            bits=self.bits,
            scale=scale,
            offset=scale * (zero - 2 ** (self.bits - 1)),
            zero=zero,
            head_dim=int(parameters["head_dim"]),
        )

    def _fit_group(self, sample: Sample) -> tuple[float, float]:
        low, high = (float(extreme) for extreme in (sample.extremes()[0].min(), sample.extremes()[1].max()))
        best = self._scale_and_zero(low, high)
        if self.search == "minmax":
            return best
        numbers = sample.vectors.double().flatten()
        weights = sample.weights.expand_as(sample.vectors).flatten()
        thinned = slice(None, None, -(-len(numbers) // GRID_NUMBERS))
        numbers, weights = numbers[thinned], weights[thinned]
        centre = float((weights * numbers).sum() / weights.sum())
        shrinks = torch.linspace(1 / GRID, 1.0, GRID, dtype=torch.float64).tolist()
        tried = [best] + [
            self._scale_and_zero(centre + below * (low - centre), centre + above * (high - centre))
            for below in shrinks
            for above in shrinks
        ]
        return min(tried, key=lambda pair: self._error(numbers, weights, *pair))

    def _scale_and_zero(self, low: float, high: float) -> tuple[float, float]:
        """Parameters whose levels span ``low`` to ``high``, the zero point rounded; float32 as they are stored."""
        scale = float(torch.tensor((high - low) / (2**self.bits - 1) or 1.0, dtype=torch.float32))
        return scale, float(round(low / scale) + 2 ** (self.bits - 1))

    def _error(self, numbers: torch.Tensor, weights: torch.Tensor, scale: float, zero: float) -> float:
        half = 2 ** (self.bits - 1)
        decoded = scale * (((numbers / scale).round() - zero).clamp(-half, half - 1) + zero)
        return float((weights * (decoded - numbers).square()).sum())
