"""Numbers kept as the model made them: for protected layers, and beside a compressed tensor."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from longvid_train.kvcache.codec import Codec, Coded, Places
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import Parameters, Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class FullPrecisionCodec(Codec):
    """Stores its input."""

    def encode(self, x: torch.Tensor, places: Places) -> Coded:
        """The input itself, in its own dtype."""
        return {"numbers": x.clone()}

    def decode(self, coded: Coded, places: Places) -> torch.Tensor:
        """The input."""
        return coded["numbers"].float()


@dataclass(frozen=True, kw_only=True)
class FullPrecision:
    """No quantization."""

    kind: ClassVar[str] = "full_precision"
    granularity: ClassVar[str] = "none"
    formula: ClassVar[str] = "x^ = x"

    bits: ClassVar[int] = 16
    symmetric: ClassVar[bool] = True
    calibrated: ClassVar[bool] = False
    rotary: ClassVar[Literal["pre", "post"]] = "post"
    block_tokens: ClassVar[int] = 1

    def check_head_dim(self, head_dim: int) -> None:
        """Every head dim will do."""

    def fit(self, sample: Sample, *, separate: bool, rotation: Rotation | None) -> dict[str, torch.Tensor]:
        """There are no parameters."""
        return {}

    def parameter_shapes(self, heads: int, head_dim: int, *, separate: bool) -> dict[str, tuple[int, ...]]:
        """As `fit` returns them."""
        return {}

    def codec(self, parameters: Parameters, *, rotation: Rotation | None) -> Codec:
        """The codec without parameters."""
        return FullPrecisionCodec(bits=self.bits)
