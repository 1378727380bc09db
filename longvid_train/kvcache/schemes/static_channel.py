"""Static scale and offset for every channel of every head: ``x^ = S_d c + m_d``.

The codes are the whole cost: ``b`` bits a number. Both parameters leave the loop over tokens (`affine`). Each channel
has levels of its own, so a weight on its error changes nothing in it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from longvid_train.kvcache.affine import AffineCodec
from longvid_train.kvcache.clipping import least_squares_levels, minmax_levels
from longvid_train.kvcache.codec import Codec
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import Parameters, Sample, kinds_of
from longvid_train.kvcache.schemes.searched import SearchedLevels


@dataclass(frozen=True, kw_only=True)
class StaticChannel(SearchedLevels):
    """One range a channel, from the calibration sample: all of it, or where the squared error is least."""

    kind: ClassVar[str] = "static_channel"
    granularity: ClassVar[str] = "channel"
    formula: ClassVar[str] = "x^ = scale * code + offset"
    rotary: ClassVar[Literal["pre", "post"]] = "post"

    def fit(self, sample: Sample, *, separate: bool, rotation: Rotation | None) -> dict[str, torch.Tensor]:
        """``scale`` and ``offset``, each ``(K, H, D)``."""
        return stacked_levels([self._fit_group(group) for group in sample.groups(separate)])

    def parameter_shapes(self, heads: int, head_dim: int, *, separate: bool) -> dict[str, tuple[int, ...]]:
        """As `fit` returns them."""
        return dict.fromkeys(("scale", "offset"), (kinds_of(separate), heads, head_dim))

    def codec(self, parameters: Parameters, *, rotation: Rotation | None) -> Codec:
        """Bind ``S`` and ``m``."""
        scale = parameters["scale"]
        return AffineCodec(bits=self.bits, scale=scale, offset=parameters["offset"], head_dim=scale.shape[-1])

    def _fit_group(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = sample.extremes()
        if self.search == "minmax":
            return minmax_levels(low, high, self.bits)
        return channel_levels(sample.vectors.double(), low, high, self.bits)


def channel_levels(
    vectors: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least-squares scale and offset, each ``(H, D)``, of ``vectors (N, H, D)`` between ``low`` and ``high (H, D)``."""
    scale, offset = least_squares_levels(vectors.flatten(1), low.flatten(), high.flatten(), bits)
    return scale.view_as(low), offset.view_as(low)


def stacked_levels(fitted: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Levels of every kind as parameters."""
    scales, offsets = zip(*fitted, strict=True)
    return {"scale": torch.stack(scales).float(), "offset": torch.stack(offsets).float()}
