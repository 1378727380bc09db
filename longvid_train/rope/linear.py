"""Position interpolation (PI; Chen et al., arXiv:2306.15595): ``theta_i' = theta_i / s``.

INTP's Eq. 3.5 is the same, written on positions: ``m L / L'``.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from longvid_train.rope.window import Window


@dataclass(frozen=True, kw_only=True)
class LinearWindow(Window):
    """Every frequency is divided by ``s``."""

    kind: ClassVar[str] = "linear"

    def rescale(self, theta: torch.Tensor, scale: float, trained_tokens: int) -> torch.Tensor:
        """``theta / s``."""
        return theta / scale
