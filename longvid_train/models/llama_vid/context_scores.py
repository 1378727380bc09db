"""Where LLaMA-VID's context attention looks (paper Eq. 1, Figures 6 and 11), computed on request from kept features.

The paper draws the scores before the softmax, for the first queries, and marks the 20 highest patches.
``F`` frames, ``M`` queries, ``P`` patches, ``C`` tower width.
"""

import torch

from longvid_train.errors import UserError
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration

FIGURE_QUERIES = 5
"""Queries of Figure 11; Figure 6 shows the first two of them."""

TOP_PATCHES, PAPER_PATCHES = 20, 256
"""Patches the paper marks a query, of so many."""


@torch.no_grad()
def context_scores(
    model: LlamaVidForConditionalGeneration,
    features: torch.Tensor,
    prompt_input_ids: torch.Tensor,
    prompt_attention_mask: torch.Tensor,
    *,
    queries: int = FIGURE_QUERIES,
) -> torch.Tensor:
    """Scores of the first queries of one question on every frame, by the steps that make its context tokens.

    Args:
        model: in eval mode.
        features: ``(F, 1 + P, C)`` from ``encode_frames``, CLS first; on any device.
        prompt_input_ids: ``(1, Lp)`` int64, the question as the text decoder reads it.
        prompt_attention_mask: ``(1, Lp)`` int64.
        queries: how many; fewer where the decoder has fewer, padding of its prompt never among them.

    Returns:
        ``(F, min(M, queries), P)`` float32 on the CPU; a softmax over ``P`` makes them the attention.

    Raises:
        UserError: the model makes no context tokens.
    """
    decoder, attention = model.text_decoder, model.context_attention
    if decoder is None or attention is None:
        raise UserError("this LLaMA-VID makes no context tokens (use_context is false); there is no attention to show")
    parts = []
    for chunk in torch.split(features, model.config.frame_chunk):
        chunk = chunk.to(prompt_input_ids.device)
        rows = len(chunk)
        found, mask = decoder(chunk, prompt_input_ids.expand(rows, -1), prompt_attention_mask.expand(rows, -1))
        counted = found.shape[1] if mask is None else int(mask[0].sum())
        parts.append(attention.scores(found[:, : min(queries, counted)], chunk[:, 1:]).float().cpu())
    return torch.cat(parts)


def top_patches(scores: torch.Tensor, count: int | None = None) -> torch.Tensor:
    """``(..., P)`` scores to the ``(..., count)`` int64 patches that score highest, the best first.

    Without a count the paper's 20, or of fewer patches than the paper's 256 the same share, at least one.
    """
    patches = scores.shape[-1]
    wanted = min(TOP_PATCHES, max(1, TOP_PATCHES * patches // PAPER_PATCHES)) if count is None else count
    return scores.topk(min(wanted, patches), dim=-1).indices
