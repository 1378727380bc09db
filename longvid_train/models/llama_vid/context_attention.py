"""The context token (paper Eq. 1, with the query and key projections that the public checkpoints have).

``n`` frame-prompt pairs, ``M`` queries, ``P`` patches; widths: ``Q`` text decoder, ``C`` tower, ``H`` language model.
"""

import torch
from torch import nn


class ContextAttention(nn.Module):
    """``q = Linear(out)``, ``k = Linear(V)``, ``A = softmax(q k^T / sqrt(C))``, ``context = Linear(mean_q(A V))``.

    ``V`` are the raw patch features without CLS. The paper's pseudo-code has no projections of queries and keys.
    Public names: ``vlm_att_projector``, ``vlm_att_key_projector``, ``vlm_att_val_projector``.
    """

    def __init__(self, query_width: int, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.query_projector = nn.Linear(query_width, vision_width)
        self.key_projector = nn.Linear(vision_width, vision_width)
        self.value_projector = nn.Linear(vision_width, language_width)

    def forward(self, queries: torch.Tensor, query_mask: torch.Tensor | None, patches: torch.Tensor) -> torch.Tensor:
        """Compute one context token a pair.

        Args:
            queries: ``(n, M, Q)`` text-decoder outputs.
            query_mask: ``(n, M)``, 1 on queries that count in the mean; ``None`` when all do.
            patches: ``(n, P, C)`` tower features without CLS.

        Returns:
            ``(n, H)``.
        """
        patches = patches.to(self.key_projector.weight.dtype)
        attention = self.scores(queries, patches).softmax(dim=-1, dtype=torch.float32)
        # The mean over queries commutes with the product by V: (n, P) weights instead of (n, M, C) values.
        weights = masked_mean(attention, query_mask).to(patches.dtype)
        return self.value_projector((weights.unsqueeze(1) @ patches).squeeze(1))

    def scores(self, queries: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """``q k^T / sqrt(C)``, what the softmax over patches takes: ``(n, M, P)`` of `forward`'s arguments."""
        patches = patches.to(self.key_projector.weight.dtype)
        query, key = self.query_projector(queries), self.key_projector(patches)
        return query @ key.transpose(-1, -2) / patches.shape[-1] ** 0.5


def masked_mean(rows: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of ``(n, M, D)`` over ``M``, counting rows whose ``(n, M)`` mask is 1; a pair without any gives zeros."""
    if mask is None:
        return rows.mean(dim=1)
    weights = mask.to(rows.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return (weights.unsqueeze(1) @ rows).squeeze(1)
