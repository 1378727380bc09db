"""Norms of gradients, by part of the model."""

import torch
from torch import nn


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """L2 norm of the gradients of each child of ``model`` that has any, in the children's order; one transfer for all.

    The norm of everything is the root of the sum of their squares.
    """
    norms: dict[str, torch.Tensor] = {}
    for name, part in model.named_children():
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        if gradients:
            norms[name] = torch.nn.utils.get_total_norm(gradients)
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}
