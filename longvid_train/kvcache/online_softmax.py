"""Attention over a cache in pieces: each piece gives a partial result, and partial results add up.

The softmax over all tokens is never formed: a piece keeps its largest score, the sum of its exponentials relative to
it, and its weighted values (Milakov and Gimelshein, arXiv:1805.02867). ``B`` rows, ``H`` key-value heads, ``R`` query
rows, ``T`` tokens of the piece, ``D`` head dim; float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention over some of the tokens.

    Attributes:
        peak: ``(B, H, R, 1)`` largest score; minus infinity where no token is visible.
        mass: ``(B, H, R, 1)`` sum of ``exp(score - peak)``.
        mixed: ``(B, H, R, D)`` sum of ``exp(score - peak)`` times value.
    """

    peak: torch.Tensor
    mass: torch.Tensor
    mixed: torch.Tensor

    def joined(self, other: "Partial") -> "Partial":
        """Attention over the tokens of both."""
        peak = torch.maximum(self.peak, other.peak)
        own, others = _shrunk(self.peak, peak), _shrunk(other.peak, peak)
        return Partial(peak, own * self.mass + others * other.mass, own * self.mixed + others * other.mixed)

    def result(self) -> torch.Tensor:
        """``(B, H, R, D)``; zero where no token is visible."""
        return self.mixed / torch.where(self.mass > 0, self.mass, 1.0)


def partial_attention(scores: torch.Tensor, mix: Callable[[torch.Tensor], torch.Tensor]) -> Partial:
    """Attention over one piece.

    Args:
        scores: ``(B, H, R, T)``, scaled and masked with minus infinity.
        mix: weights ``(B, H, R, T)`` to weighted values ``(B, H, R, D)``.
    """
    peak = scores.amax(-1, keepdim=True)
    weights = (scores - torch.where(peak == -torch.inf, 0.0, peak)).exp()
    return Partial(peak, weights.sum(-1, keepdim=True), mix(weights))


def _shrunk(peak: torch.Tensor, new_peak: torch.Tensor) -> torch.Tensor:
    """``exp(peak - new_peak)``, 0 for a piece of which nothing is visible."""
    return torch.where(peak == -torch.inf, 0.0, (peak - new_peak).exp())
