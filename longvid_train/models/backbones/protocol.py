"""What a backbone is: a transformers video or image model, cut where token plans act.

A backbone says in numbers what its checkpoint makes of a frame (`BackboneFacts`, known from the configuration alone),
and gives three tensors: features of a chunk of frames, the tokens of these frames at any resolution, and the tokens
after the video. Everything else (`video`, `language`) is the same for all.

``F`` frames of a chunk, ``P`` patches a frame, ``W`` width of the features, ``H`` width of the language model.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from longvid_train.rope.scale import TrainedWindows
from longvid_train.tokens.grid import FrameGrid


@dataclass(frozen=True, kw_only=True)
class BackboneFacts:
    """What a checkpoint's configuration says, before weights are loaded.

    Attributes:
        model_type: transformers' name of the architecture; what ``Adaptation.backbones`` lists.
        grid: patches of a frame, trained pooling, class and end tokens.
        trained: windows the checkpoint was trained on, in tokens.
        image_side: pixels a side of a preprocessed frame.
        medium: what its chat template calls what is shown: ``"video"``, or ``"image"`` where there is no video.
        placeholder_id: the id that stands for one visual token.
        prompt: the documented prompt, with ``{question}``, where every checkpoint of the family has the same one; used
            when a folder has no chat template.
        shows_images: whether an image is a frame: it passes the weights that videos pass.
    """

    model_type: str
    grid: FrameGrid
    trained: TrainedWindows
    image_side: int
    medium: str
    placeholder_id: int
    prompt: str | None
    shows_images: bool = True


class Backbone(Protocol):
    """A loaded model and how its frames become tokens. Implementations are one a file."""

    @property
    def model(self) -> Any:
        """The transformers model, of its own class; ``save_pretrained`` writes what ``from_pretrained`` read."""
        ...

    @property
    def facts(self) -> BackboneFacts:
        """From the model's configuration."""
        ...

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of one chunk of frames, before any pooling.

        Args:
            pixel_values: ``(F, 3, side, side)`` float on any device; groups of ``grid.joint_frames`` one after another.

        Returns:
            ``(F, class_tokens + P, W)`` in the model's dtype.

        Raises:
            UserError: the frames are not of the configured size.
        """
        ...

    def frame_tokens(self, features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Tokens of encoded frames at one resolution.

        Args:
            features: ``(F, class_tokens + P, W)`` from `encode`.
            rows: cells from top to bottom, as the grid gives them for a stride.
            columns: cells from left to right.

        Returns:
            ``(F, class_tokens + rows * columns, H)``.

        Raises:
            UserError: the checkpoint cannot make this resolution.
        """
        ...

    def end_tokens(self) -> torch.Tensor:
        """``(grid.end_tokens, H)``: what stands after the whole video."""
        ...
