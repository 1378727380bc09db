"""The only place where text and visual tokens meet.

``B`` rows, ``S`` tokens a row, ``T`` visual tokens of the whole batch, ``H`` language-model width.
"""

import torch
from torch import nn

from longvid_train.errors import UserError


def embed_and_splice(
    embedding: nn.Module, input_ids: torch.Tensor, visual_tokens: torch.Tensor, visual_token_id: int
) -> torch.Tensor:
    """Embed the text and put the visual tokens, in reading order, at the placeholders.

    The placeholder's own embedding is never looked up, so its id may lie outside the vocabulary.

    Args:
        embedding: maps ``(B, S)`` int64 ids to ``(B, S, H)``.
        input_ids: ``(B, S)`` int64 with one ``visual_token_id`` per visual token.
        visual_tokens: ``(T, H)``.
        visual_token_id: the placeholder.

    Returns:
        ``(B, S, H)`` in the embedding's dtype, differentiable in both the embedding and the visual tokens.

    Raises:
        UserError: the batch has not exactly ``T`` placeholders.
    """
    placeholders = input_ids == visual_token_id
    count = int(placeholders.sum())
    if count != len(visual_tokens):
        raise UserError(
            f"input_ids hold {count} visual placeholders (id {visual_token_id}) but the frames make "
            f"{len(visual_tokens)} visual tokens; count with tokens_per_frame, never cut inside a clip"
        )
    text = embedding(input_ids.masked_fill(placeholders, 0))
    return text.masked_scatter(placeholders.unsqueeze(-1), visual_tokens.to(text.dtype))
