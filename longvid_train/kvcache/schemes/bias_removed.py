"""Static channels after the keys' mean before rotation is taken away: ``k^ = R(p) mu + S_d c + m_d``.

Most of what keys have in common (in Qwen2, the bias of ``k_proj``) is one vector that the rotary embedding turns with
the position, so that rotated channels spread over a wide range. ``R(p) mu`` is known for every position and costs no
bits; what is left is coded as in `static_channel`, and its parameters leave the loop over tokens. The rotated mean adds
``q . R(p) mu`` to a score, one cosine and one sine a pair of channels.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from longvid_train.kvcache.affine import AffineCodec
from longvid_train.kvcache.clipping import minmax_levels
from longvid_train.kvcache.codec import Codec, Coded, Places, by_kind, choose_kind
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import (
    Parameters,
    Sample,
    check_rotation,
    in_one_row,
    kinds_of,
)
from longvid_train.kvcache.schemes.searched import SearchedLevels
from longvid_train.kvcache.schemes.static_channel import channel_levels, stacked_levels


@dataclass(frozen=True, kw_only=True, eq=False)
class BiasRemovedCodec(Codec):
    """An `AffineCodec` of what is left beside the rotated mean.

    Attributes:
        mean: ``(K, H, D)`` float32, before rotation.
        rotation: of the model.
        rest: codes ``k - R(p) mean``.
    """

    mean: torch.Tensor
    rotation: Rotation
    rest: AffineCodec

    def encode(self, x: torch.Tensor, places: Places) -> Coded:
        """Codes of the rest."""
        return self.rest.encode(x.double() - self._rotated_mean(places, torch.float64), places)

    def decode(self, coded: Coded, places: Places) -> torch.Tensor:
        """``R(p) mu + S c + m``."""
        return self.rest.decode(coded, places) + self._rotated_mean(places, torch.float32)

    def scores(self, query: torch.Tensor, coded: Coded, places: Places) -> torch.Tensor:
        """``(q S) . c + q . m + q . R(p) mu``."""
        bias = [self.rotation.scores(query, mean, places.positions) for mean in self.mean]
        return self.rest.scores(query, coded, places) + choose_kind(bias, places)

    def to(self, device: torch.device | str) -> "BiasRemovedCodec":
        """The same codec with its parameters on a device."""
        return BiasRemovedCodec(
            bits=self.bits, mean=self.mean.to(device), rotation=self.rotation.to(device), rest=self.rest.to(device)
        )

    def parameter_bytes(self) -> int:
        """Bytes of the mean, the frequencies and the levels."""
        return super().parameter_bytes() + self.rest.parameter_bytes()

    def _rotated_mean(self, places: Places, dtype: torch.dtype) -> torch.Tensor:
        mean = by_kind(self.mean, places).to(dtype)
        rows, tokens = places.positions.shape
        return self.rotation.apply(mean.expand(rows, -1, tokens, -1), places.positions)


@dataclass(frozen=True, kw_only=True)
class BiasRemoved(SearchedLevels):
    """For keys only."""

    kind: ClassVar[str] = "bias_removed"
    granularity: ClassVar[str] = "channel"
    formula: ClassVar[str] = "k^ = R(position) mean + scale * code + offset"
    rotary: ClassVar[Literal["pre", "post"]] = "pre"

    def fit(self, sample: Sample, *, separate: bool, rotation: Rotation | None) -> dict[str, torch.Tensor]:
        """``mean``, ``scale`` and ``offset``, each ``(K, H, D)``.

        ``minmax`` is the range of the sampled tokens: extremes over all tokens are known with the mean in them only.
        """
        rotation = check_rotation(rotation, self.kind)
        means, levels = [], []
        for group in sample.groups(separate):
            row, positions = in_one_row(group)
            mean = rotation.remove(row, positions).mean(2)[0]
            rotated_mean = rotation.apply(mean[None, :, None, :].expand_as(row), positions)
            rest = (row - rotated_mean)[0].transpose(0, 1)
            low, high = rest.amin(0), rest.amax(0)
            means.append(mean)
            levels.append(
                minmax_levels(low, high, self.bits)
                if self.search == "minmax"
                else channel_levels(rest, low, high, self.bits)
            )
        return {"mean": torch.stack(means).float(), **stacked_levels(levels)}

    def parameter_shapes(self, heads: int, head_dim: int, *, separate: bool) -> dict[str, tuple[int, ...]]:
        """As `fit` returns them."""
        return dict.fromkeys(("mean", "scale", "offset"), (kinds_of(separate), heads, head_dim))

    def codec(self, parameters: Parameters, *, rotation: Rotation | None) -> Codec:
        """Bind mean and levels."""
        scale = parameters["scale"]
        return BiasRemovedCodec(
            bits=self.bits,
            mean=parameters["mean"],
            rotation=check_rotation(rotation, self.kind),
            rest=AffineCodec(bits=self.bits, scale=scale, offset=parameters["offset"], head_dim=scale.shape[-1]),
        )
