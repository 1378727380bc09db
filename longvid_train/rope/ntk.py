"""Static NTK-aware interpolation (INTP, Eq. 3.6): base ``b' = b s^(d / (d - 2))``.

Written on frequencies, ``theta_i' = theta_i s^(-2 i / (d - 2))``: the fastest is kept and the slowest divided by
``s``. It is fixed for the life of a cache; transformers' ``dynamic`` type raises the base as the sequence grows, so
that the keys in a cache keep older rotations.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from longvid_train.errors import UserError
from longvid_train.rope.window import Window


@dataclass(frozen=True, kw_only=True)
class NtkWindow(Window):
    """The base grows with ``s``."""

    kind: ClassVar[str] = "ntk"

    def rescale(self, theta: torch.Tensor, scale: float, trained_tokens: int) -> torch.Tensor:
        """``theta_i s^(-2 i / (d - 2))``.

        Raises:
            UserError: the model has a single frequency, for which the exponent has no value.
        """
        if len(theta) < 2:
            raise UserError("window 'ntk' needs at least 2 rotary frequencies, the model has 1; use 'linear'")
        exponent = torch.arange(len(theta), dtype=torch.float64) / (len(theta) - 1)
        return theta * scale**-exponent
