"""Cross-entropy over supervised positions only: logits of the other positions are never made.

``B`` rows, ``S`` tokens a row, ``n`` supervised tokens, ``H`` language-model width.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from longvid_train.types import IGNORE_INDEX

TOKEN_CHUNK = 4096
"""Supervised tokens whose logits exist at once; with more, the backward pass recomputes each chunk's logits."""


def supervised_loss_sum(
    hidden_states: torch.Tensor, labels: torch.Tensor, lm_head: nn.Module, chunk: int = TOKEN_CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of next-token cross-entropies and how many there are.

    Args:
        hidden_states: ``(B, S, H)`` of the last layer, after its norm.
        labels: ``(B, S)`` int64; position ``s + 1`` is predicted from ``s``; ``IGNORE_INDEX`` is not supervised.
        lm_head: maps ``(n, H)`` to ``(n, vocabulary)`` logits.
        chunk: see ``TOKEN_CHUNK``.

    Returns:
        The float32 scalar sum (0, still attached to the graph, when nothing is supervised) and the int64 scalar count.
    """
    return aligned_loss_sum(hidden_states[:, :-1], labels[:, 1:], lm_head, chunk)


def aligned_loss_sum(
    hidden_states: torch.Tensor, targets: torch.Tensor, lm_head: nn.Module, chunk: int = TOKEN_CHUNK
) -> tuple[torch.Tensor, torch.Tensor]:
    """`supervised_loss_sum` of states beside the tokens that they predict: part of a sequence may stand alone.

    Args:
        hidden_states: ``(B, S, H)`` of the last layer, after its norm.
        targets: ``(B, S)`` int64; predicted from the state at the same place, ``IGNORE_INDEX`` is not supervised.
        lm_head: maps ``(n, H)`` to ``(n, vocabulary)`` logits.
        chunk: see ``TOKEN_CHUNK``.

    Returns:
        As `supervised_loss_sum`.
    """
    supervised = targets != IGNORE_INDEX
    states, targets = hidden_states[supervised], targets[supervised]
    count = supervised.sum()
    if len(targets) <= chunk:
        return _chunk_loss(states, targets, lm_head), count
    total = states.new_zeros((), dtype=torch.float32)
    for part, wanted in zip(torch.split(states, chunk), torch.split(targets, chunk), strict=True):
        total = total + checkpoint(_chunk_loss, part, wanted, lm_head, use_reentrant=False)
    return total, count


def _chunk_loss(states: torch.Tensor, targets: torch.Tensor, lm_head: nn.Module) -> torch.Tensor:
    return cross_entropy(lm_head(states).float(), targets, reduction="sum")
