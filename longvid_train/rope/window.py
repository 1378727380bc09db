"""What every window extension has in common: how far it reaches, and what it does to a checkpoint that already scales.

``theta`` is the model's ``(d/2,)`` inverse frequencies in float64, ``L`` the window in tokens it was trained on, ``s``
the scale factor (1 changes nothing), ``r_i = L theta_i / (2 pi)`` the turns that frequency ``i`` makes within ``L``.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from longvid_train.errors import UserError, nearest

Measure = Literal["language", "visual"]
CheckpointScaling = Literal["compose", "replace"]


@dataclass(frozen=True, kw_only=True)
class Window(ABC):
    """A way to extend a rotary model's window. Subclasses hold one method each.

    Attributes:
        measure: which tokens are measured against which window: ``"visual"``, the input's visual tokens against the
            longest visual sequence of training; ``"language"``, the whole sequence against the language model's window.
        trained_tokens: that window ``L``; ``None`` is the backbone's.
        scale: fixed ``s``; ``None`` takes it from ``target_tokens``, or from the tokens of each input.
        target_tokens: fixed extended window, ``s = target_tokens / L``.
        temperature: multiply cos and sin by ``0.1 ln s + 1``, as YaRN does and the visual context window paper does
            not.
        checkpoint_scaling: what to do where the checkpoint's own config scales its frequencies: ``"compose"`` takes
            them as those it was trained with and extends on top; ``"replace"`` starts from the unscaled ones.
    """

    kind: ClassVar[str]

    measure: Measure = "language"
    trained_tokens: int | None = None
    scale: float | None = None
    target_tokens: int | None = None
    temperature: bool = False
    checkpoint_scaling: CheckpointScaling = "compose"

    def __post_init__(self) -> None:
        """Refuse what cannot extend a window."""
        _check_choice(self.measure, get_args(Measure), "measure")
        _check_choice(self.checkpoint_scaling, get_args(CheckpointScaling), "checkpoint_scaling")
        for name in ("trained_tokens", "target_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1 token")
        if self.scale is not None and not 1 <= self.scale < math.inf:
            raise UserError(
                f"scale is {self.scale}, which makes a window below the training window; use 1 (off) or more, e.g. 4"
            )
        if self.scale is not None and self.target_tokens is not None:
            raise UserError(
                f"scale {self.scale:g} and target_tokens {self.target_tokens} both fix the window; give one of them"
            )

    @abstractmethod
    def rescale(self, theta: torch.Tensor, scale: float, trained_tokens: int) -> torch.Tensor:
        """Extended inverse frequencies.

        Args:
            theta: ``(d/2,)`` float64, as the model was trained.
            scale: ``s``, at least 1; at 1 the result is ``theta``.
            trained_tokens: ``L``.

        Returns:
            ``(d/2,)`` float64.
        """

    def notes(self, theta: torch.Tensor, scale: float, trained_tokens: int) -> list[str]:
        """What the user should know about this method on these frequencies."""
        return []

    @property
    def extends(self) -> bool:
        """Whether ``s`` may be above 1."""
        return True

    @property
    def extrapolates(self) -> bool:
        """Whether sequences beyond the window are run all the same."""
        return False

    def attention_scaling(self, scale: float) -> float:
        """Factor on cos and sin: 1, or YaRN's ``0.1 ln s + 1`` (arXiv:2309.00071, Eq. 22)."""
        return 0.1 * math.log(scale) + 1.0 if self.temperature else 1.0


def _check_choice(value: object, valid: tuple[str, ...], name: str) -> None:
    if value not in valid:
        hint = nearest(str(value), list(valid)) or "."
        raise UserError(f"{name} '{value}' is unknown{hint} Use one of {', '.join(valid)}")
