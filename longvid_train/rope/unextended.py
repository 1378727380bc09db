"""No extension: the baseline of both papers, the model's frequencies as they are."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from longvid_train.errors import UserError
from longvid_train.rope.window import Window


@dataclass(frozen=True, kw_only=True)
class NoWindow(Window):
    """The model's own window.

    Attributes:
        extrapolate: run sequences beyond the window on positions the model never saw ("direct extrapolation" in
            Table 4 of the visual context window paper); else they are refused.
    """

    kind: ClassVar[str] = "none"

    extrapolate: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that have no effect here."""
        super().__post_init__()
        for name, default in (("scale", None), ("target_tokens", None), ("temperature", False)):
            if getattr(self, name) != default:
                raise UserError(
                    f"{name} has no effect on the window 'none'; leave it out or choose another kind of window"
                )

    @property
    def extends(self) -> bool:
        """Never."""
        return False

    @property
    def extrapolates(self) -> bool:
        """As set."""
        return self.extrapolate

    def rescale(self, theta: torch.Tensor, scale: float, trained_tokens: int) -> torch.Tensor:
        """``theta`` itself."""
        return theta
