"""The windows a checkpoint was trained on, from its configuration and what its authors say of its training."""

from typing import Any

from longvid_train.rope.scale import TrainedWindows
from longvid_train.tokens.grid import FrameGrid


def trained_windows(config: Any, grid: FrameGrid, frames: int | None) -> TrainedWindows:
    """The visual window of ``frames`` frames at the trained stride (``None``: not stated), and the language window."""
    visual = None if frames is None else frames * grid.frame_tokens(grid.stride)
    return TrainedWindows(visual=visual, language=language_window(config.get_text_config()))


def language_window(text_config: Any) -> int:
    """Positions of the language model.

    A linear scaling in the checkpoint (LLaVA-NeXT-Video: 2.5) multiplies ``max_position_embeddings``, which counts the
    positions before it (4096 for Vicuna); the other types come with the number of positions after it.
    """
    rope = text_config.rope_parameters
    positions = int(text_config.max_position_embeddings)
    return int(positions * rope["factor"]) if rope["rope_type"] == "linear" else positions
