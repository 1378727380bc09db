"""What a visual token shows, read from it by one linear layer: a loss on every frame, and a layer that is thrown away.

Answers tell a tower about the one or two objects that were asked about; this tells it about every cell of every frame.
``F`` frames of ``T`` visual tokens, ``H`` language-model width, ``W`` words.
"""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from longvid_train.training.nano.clip_words import clear_cells, frame_bags
from longvid_train.world.clips import Clip
from longvid_train.world.episode import COLOURS, DIGITS, SCENES, SHAPES
from longvid_train.world.text import NOTHING

WORDS = (*COLOURS, *SHAPES, *DIGITS, *SCENES, NOTHING)
_INDEX = {word: index for index, word in enumerate(WORDS)}


class FrameWords(nn.Module):
    """Predicts the bag of every cell (`clip_words`) from its token.

    Args:
        width: ``H``.
        class_token: whether a token of the whole frame stands in front.
    """

    def __init__(self, width: int, *, class_token: bool) -> None:
        super().__init__()
        self._class_token = class_token
        self.read = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(WORDS)))

    def forward(self, tokens: torch.Tensor, clips: tuple[Clip, ...]) -> torch.Tensor:
        """Binary cross-entropy, summed over words, mean over the tokens whose bag says all that their cell shows.

        Args:
            tokens: ``(F, T, H)``, clip after clip.
            clips: whose frames they are.
        """
        shown = [(clip.episode, time_s) for clip in clips for time_s in clip.times_s]
        clear = torch.tensor([clear_cells(*one, class_token=self._class_token) for one in shown])
        wanted = torch.stack([_hot(frame_bags(*one, class_token=self._class_token)) for one in shown])
        logits = self.read(tokens[clear.to(tokens.device)])
        loss = binary_cross_entropy_with_logits(logits, wanted[clear].to(tokens.device), reduction="sum")
        return loss / int(clear.sum())


def _hot(bags: tuple[tuple[str, ...], ...]) -> torch.Tensor:
    """``(T, W)``: 1 where a cell shows a word."""
    wanted = torch.zeros(len(bags), len(WORDS))
    for row, bag in enumerate(bags):
        wanted[row, [_INDEX[word] for word in bag]] = 1.0
    return wanted
