"""YaRN by parts (Peng et al., arXiv:2309.00071), as in the visual context window paper (Eq. 5) and as in transformers.

``theta_i' = (gamma_i + (1 - gamma_i) / s) theta_i``: frequencies that turn often within the window are kept (gamma 1),
those that never complete ``alpha`` turns are interpolated (gamma 0). Between them

- ramp ``"paper"``: ``gamma_i = (r_i - alpha) / (beta - alpha)``, linear in the turns ``r_i``;
- ramp ``"index"``: linear in the index ``i``, with its ends rounded outwards to whole indices unless ``truncate`` is
  off: transformers' ``rope_type: yarn``, which also has the attention temperature (here an option of every window).

The two are not the same: at d = 128, b = 1e6, L = 6272, s = 8 the frequencies differ by up to 2.17 times.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch

from longvid_train.errors import UserError, nearest
from longvid_train.rope.window import Window

Ramp = Literal["paper", "index"]
Bounds = Literal["turns", "share"]

GEOMETRIC_TOLERANCE = 1e-5
"""Relative deviation from a geometric row up to which float32 frequencies count as one."""


@dataclass(frozen=True, kw_only=True)
class YarnWindow(Window):
    """YaRN; with ``measure="language"`` the paper's YaRN baseline.

    Attributes:
        ramp: linear in turns (the paper) or in the index (transformers).
        alpha: turns within the training window below which a frequency is interpolated by ``s``.
        beta: turns above which it is kept.
        bounds: ``"turns"`` counts alpha and beta in turns; ``"share"`` in shares of the fastest frequency's turns,
            which means the same for a window of 32 tokens as for one of 32,768.
        truncate: round the ends of the index ramp outwards to whole indices, as transformers does by default.
    """

    kind: ClassVar[str] = "yarn"

    ramp: Ramp = "paper"
    alpha: float = 1.0
    beta: float = 32.0
    bounds: Bounds = "turns"
    truncate: bool = True

    def __post_init__(self) -> None:
        """Refuse ramps without a slope."""
        super().__post_init__()
        for name, valid in (("ramp", get_args(Ramp)), ("bounds", get_args(Bounds))):
            value = getattr(self, name)
            if value not in valid:
                hint = nearest(str(value), list(valid)) or "."
                raise UserError(f"{name} '{value}' is unknown{hint} Use one of {', '.join(valid)}")
        if not 0 < self.alpha < self.beta < math.inf:
            raise UserError(f"alpha is {self.alpha:g} and beta {self.beta:g}; they must satisfy 0 < alpha < beta")
        if self.bounds == "share" and self.beta > 1:
            raise UserError(
                f"beta is {self.beta:g}, but with bounds 'share' it is a share of the fastest frequency's turns; "
                "use at most 1, e.g. alpha 0.2 and beta 0.8"
            )
        if not self.truncate and self.ramp != "index":
            raise UserError("truncate has no effect on ramp 'paper'; leave it out or set ramp to 'index'")

    def gamma(self, theta: torch.Tensor, trained_tokens: int) -> torch.Tensor:
        """``(d/2,)`` float64 share of each frequency that is kept.

        Raises:
            UserError: the index ramp on frequencies that are no geometric row.
        """
        turns = trained_tokens * theta / (2 * math.pi)
        unit = float(turns[0]) if self.bounds == "share" else 1.0
        alpha, beta = self.alpha * unit, self.beta * unit
        if self.ramp == "paper":
            return ((turns - alpha) / (beta - alpha)).clamp(0.0, 1.0)
        return _index_gamma(turns, alpha, beta, truncate=self.truncate)

    def rescale(self, theta: torch.Tensor, scale: float, trained_tokens: int) -> torch.Tensor:
        """``(gamma + (1 - gamma) / s) theta``."""
        gamma = self.gamma(theta, trained_tokens)
        return (gamma + (1.0 - gamma) / scale) * theta

    def notes(self, theta: torch.Tensor, scale: float, trained_tokens: int) -> list[str]:
        """Says where the ramp degenerates: into plain interpolation, or into no interpolation."""
        if scale == 1:
            return []
        gamma = self.gamma(theta, trained_tokens)
        fastest = trained_tokens * float(theta[0]) / (2 * math.pi)
        if gamma.max() < 1:
            return [
                f"no frequency is kept: the fastest makes {fastest:.3g} turns in the training window of "
                f"{trained_tokens} tokens, fewer than beta = {self.beta:g}, and keeps a share of "
                f"{float(gamma.max()):.2g}; this is close to plain interpolation (linear). "
                f"Set beta below {fastest:.3g}, or use bounds 'share'"
            ]
        if gamma.min() == 1:
            return [
                f"no frequency is interpolated: every one makes more than beta = {self.beta:g} turns in the training "
                f"window of {trained_tokens} tokens, so the extension changes nothing. Raise alpha and beta"
            ]
        return []


def _index_gamma(turns: torch.Tensor, alpha: float, beta: float, *, truncate: bool) -> torch.Tensor:
    """Transformers' ramp; written on turns, so that it holds on a checkpoint that scales all frequencies alike."""
    count = len(turns)
    step = _log_step(turns)
    low, high = (math.log(float(turns[0]) / bound) / step for bound in (beta, alpha))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * count - 1)
    if low == high:
        high += 0.001
    indices = torch.arange(count, dtype=torch.float64)
    return 1.0 - ((indices - low) / (high - low)).clamp(0.0, 1.0)


def _log_step(turns: torch.Tensor) -> float:
    """``2 ln b / d`` of a geometric row of at least two."""
    logs = turns.log()
    count = len(turns)
    if count < 2:
        raise UserError("ramp 'index' needs at least 2 rotary frequencies, the model has 1; use ramp 'paper'")
    step = float(logs[0] - logs[-1]) / (count - 1)
    if float((logs[:-1] - logs[1:] - step).abs().max()) > GEOMETRIC_TOLERANCE or step <= 0:
        raise UserError(
            "ramp 'index' needs frequencies b^(-2i/d), but the checkpoint scales them one by one; "
            "use ramp 'paper', or checkpoint_scaling 'replace'"
        )
    return step
