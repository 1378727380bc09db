"""The gradient of a step: its scale and its norms, by part of the model."""

import math

import torch
from pytorch_lightning.strategies import Strategy
from torch import nn

from longvid_train.training.strategies.zero import ZeroStrategy


def average_gradient(strategy: Strategy, model: nn.Module, scale: float) -> tuple[float, dict[str, float]]:
    """Multiply the gradient of the coming step by ``scale``.

    Args:
        strategy: under ZeRO it holds the gradients, in shards.
        model: what trains.
        scale: of the gradient.

    Returns:
        The L2 norm of the scaled gradient, and that of each part of ``model``; of no part under ZeRO, where gradients
        of several parts share a shard.
    """
    if isinstance(strategy, ZeroStrategy):
        return strategy.average_gradient(scale), {}
    for value in model.parameters():
        if value.grad is not None:
            value.grad.mul_(scale)
    norms = gradient_norms(model)
    return math.hypot(*norms.values()), norms


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
