"""One row of a calibration set as the decoder reads it. ``S`` tokens, ``H`` language-model width."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationRow:
    """A prompt and its answer.

    Attributes:
        number: of the row in its set; no two rows of a calibration have the same.
        name: for messages.
        kind: of the question, e.g. ``"needle"``; empty where no answer is known to be the right one.
        embeddings: ``(1, S, H)``, visual tokens in their places, on the model's device.
        visual: ``(1, S)`` bool, which tokens are visual.
        input_ids: ``(S,)`` int64 on the CPU; ids of visual tokens are not read.
        answer: first and one past the last token of the row's last answer; the first is at least 1.
    """

    number: int
    name: str
    kind: str
    embeddings: torch.Tensor
    visual: torch.Tensor
    input_ids: torch.Tensor
    answer: tuple[int, int]

    def __post_init__(self) -> None:
        """Assert that the parts are of one row."""
        length = len(self.input_ids)
        assert self.embeddings.shape[:2] == self.visual.shape == (1, length)
        assert 0 < self.answer[0] < self.answer[1] <= length
