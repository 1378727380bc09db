"""The learning rate of the nano recipes, and the score they log."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Rate:
    """AdamW's settings: linear warm-up, constant, then a cosine to 0 over what is left from ``decay_from`` on."""

    peak: float
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_from: float = 0.6

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak at ``step`` of ``steps``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        decaying = (step / steps - self.decay_from) / (1 - self.decay_from)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, decaying))))

    def optimizers(self, parameters: list[torch.nn.Parameter], steps: int) -> dict[str, object]:
        """What Lightning's ``configure_optimizers`` returns."""
        optimizer = torch.optim.AdamW(parameters, lr=self.peak, betas=(0.9, 0.98), weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def exact_match(right: torch.Tensor, answers: tuple[tuple[str, int, int, int], ...]) -> dict[str, float]:
    """Share of the answers of each kind whose every token is the likeliest one: what greedy decoding would answer.

    Args:
        right: ``(B, S)`` bool, whether a position's token is the likeliest one, given the right ones before it.
        answers: ``(kind, row, start, end)``.
    """
    scores: dict[str, list[float]] = {}
    for kind, row, start, end in answers:
        scores.setdefault(kind, []).append(float(right[row, start:end].all()))
    return {kind: sum(values) / len(values) for kind, values in scores.items()}
