"""What a scheme is: settings of one way to code the keys or the values of a layer.

A scheme is a frozen dataclass of a few numbers. It fits parameters to a calibration sample of one layer (`Scheme.fit`),
and binds parameters, fitted just now or read from a quantizer checkpoint, to a codec (`Scheme.codec`). Parameters are
a plain dictionary of tensors, which is what a checkpoint stores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch

from longvid_train.errors import UserError, nearest
from longvid_train.kvcache.codec import KINDS, Codec
from longvid_train.kvcache.packing import BIT_WIDTHS
from longvid_train.kvcache.rotation import Rotation

Parameters = Mapping[str, torch.Tensor]
Tensor = Literal["keys", "values"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What calibration keeps of the keys or the values of one layer; ``N`` sampled tokens.

    Attributes:
        name: of the layer and tensor, for messages.
        vectors: ``(N, H, D)``, rotated where they are keys.
        positions: ``(N,)`` int64.
        kinds: ``(N,)`` uint8.
        low: ``(2, H, D)`` smallest value of every channel and kind over all tokens, sampled or not.
        high: ``(2, H, D)`` the largest.
        weights: ``(H, D)`` float64 cost of a squared error in each channel: ``E[q_d^2]`` for keys, 1 for values.
    """

    name: str
    vectors: torch.Tensor
    positions: torch.Tensor
    kinds: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    weights: torch.Tensor

    def groups(self, separate: bool) -> list["Sample"]:
        """One sample for each set of parameters: all tokens, or text tokens and visual tokens.

        Raises:
            UserError: a kind was never seen in calibration.
        """
        if not separate:
            return [self]
        return [self._of_kind(kind) for kind in range(KINDS)]

    def extremes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``(H, D)`` float64 smallest and largest value of each channel."""
        return self.low.double().amin(0), self.high.double().amax(0)

    def _of_kind(self, kind: int) -> "Sample":
        chosen = self.kinds == kind
        if not chosen.any():
            raise UserError(
                f"{self.name}: no {('text', 'visual')[kind]} token in the calibration sample, so it cannot have "
                "parameters of its own; set separate_visual: false, or calibrate on prompts with both"
            )
        return Sample(
            name=self.name,
            vectors=self.vectors[chosen],
            positions=self.positions[chosen],
            kinds=self.kinds[chosen],
            low=self.low[kind : kind + 1],
            high=self.high[kind : kind + 1],
            weights=self.weights,
        )


@runtime_checkable
class Scheme(Protocol):
    """See the module. Implementations are frozen dataclasses, one a file."""

    kind: ClassVar[str]
    granularity: ClassVar[str]
    formula: ClassVar[str]

    @property
    def bits(self) -> int:
        """Bits of a code; 16 where numbers are kept as they are."""
        ...

    @property
    def symmetric(self) -> bool:
        """Whether the levels lie around zero by construction."""
        ...

    @property
    def calibrated(self) -> bool:
        """Whether `fit` needs a sample."""
        ...

    @property
    def rotary(self) -> Literal["pre", "post"]:
        """Whether keys are coded before or after the rotary embedding."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens that are coded together; pieces start at multiples of it."""
        ...

    def check_head_dim(self, head_dim: int) -> None:
        """Refuse a head dim the scheme cannot code.

        Raises:
            UserError: naming both.
        """
        ...

    def fit(self, sample: Sample, *, separate: bool, rotation: Rotation | None) -> dict[str, torch.Tensor]:
        """Parameters, float32, with an axis of kinds in front.

        Args:
            sample: of one layer.
            separate: fit text and visual tokens apart.
            rotation: of the model, where keys are fitted.

        Raises:
            UserError: the sample does not allow it.
        """
        ...

    def parameter_shapes(self, heads: int, head_dim: int, *, separate: bool) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter that `fit` returns, by name; all are float32."""
        ...

    def codec(self, parameters: Parameters, *, rotation: Rotation | None) -> Codec:
        """Bind parameters, as `fit` returned them."""
        ...


def check_bits(bits: int, kind: str) -> None:
    """Refuse a width no code has.

    Raises:
        UserError: naming it.
    """
    if bits not in BIT_WIDTHS:
        raise UserError(f"{kind}: bits is {bits}; use one of {', '.join(map(str, BIT_WIDTHS))}")


def check_choice(value: str, valid: tuple[str, ...], name: str) -> None:
    """Refuse a word that is not one of ``valid``.

    Raises:
        UserError: naming it.
    """
    if value not in valid:
        hint = nearest(str(value), valid) or "."
        raise UserError(f"{name} '{value}' is unknown{hint} Use one of {', '.join(valid)}")


def check_rotation(rotation: Rotation | None, kind: str) -> Rotation:
    """The rotation, which a scheme that takes positions off needs.

    Raises:
        UserError: there is none.
    """
    if rotation is None:
        raise UserError(f"{kind}: takes the rotary embedding off, and none was given; pass the model's rotation")
    return rotation


def kinds_of(separate: bool) -> int:
    """Sets of parameters."""
    return KINDS if separate else 1


def in_one_row(sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """The sampled vectors as one row ``(1, H, N, D)`` float64 and their positions ``(1, N)``."""
    return sample.vectors.double().transpose(0, 1)[None], sample.positions[None]


def out_of_row(row: torch.Tensor) -> torch.Tensor:
    """The inverse of `in_one_row` for the vectors: ``(N, H, D)``."""
    return row[0].transpose(0, 1)
