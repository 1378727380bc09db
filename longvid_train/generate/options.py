"""How an answer is drawn: the options of transformers' ``generate`` that a question needs, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longvid_train.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Greedy unless ``temperature`` is positive.

    Attributes:
        max_new_tokens: longest answer, its end token included.
        temperature: 0 takes the likeliest token each time; above 0 tokens are drawn.
        top_p: draw from the likeliest tokens that together have this probability; needs a temperature.
        num_beams: beams of beam search; 1 is none.
        seed: of the draws; the same seed gives the same answer on the same machine.
        extra: further keyword arguments of transformers' ``generate`` (``repetition_penalty``, ...).
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    seed: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values outside their range and options without effect."""
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_p < 1 and not self.samples:
            raise UserError(f"top_p {self.top_p} has no effect at temperature 0; set a temperature, e.g. 0.7")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; it must be 0 or more and below 2**63")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature > 0

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of transformers' ``generate``."""
        keywords: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.samples,
            "num_beams": self.num_beams,
        }
        if self.samples:
            keywords |= {"temperature": self.temperature, "top_p": self.top_p}
        return keywords | dict(self.extra)
