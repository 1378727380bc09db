"""AdamW with weight decay on the matrices of linear and convolution layers only, and the papers' cosine schedule."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from longvid_train.errors import UserError

_DECAYED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
DECAYS = "decays"
"""Key of a parameter group: whether weight decay applies to it."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        lr: peak learning rate, reached at the end of the warm-up.
        weight_decay: decoupled weight decay of linear and convolution weights (the paper: 0).
        betas: exponential decay rates of the first and second moment.
        eps: added to the denominator.
    """

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"optimizer lr is {self.lr}; it must be a positive number, e.g. 1e-3")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(f"optimizer weight_decay is {self.weight_decay}; it must be 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer betas are {self.betas}; each must be at least 0 and below 1")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into a decayed and an undecayed AdamW group; a group without members is left out.

    Decayed: weights of ``nn.Linear`` and ``nn.Conv*``. Undecayed: biases, norms, embeddings (also where the output
    layer is tied to them), learned queries and every other parameter.
    """
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, _DECAYED)}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trainable = [value for value in model.parameters() if value.requires_grad]
    decayed = [value for value in trainable if id(value) in matrices - embeddings]
    chosen = {id(value) for value in decayed}
    rest = [value for value in trainable if id(value) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay, DECAYS: True},
        {"params": rest, "weight_decay": 0.0, DECAYS: False},
    ]
    return [group for group in groups if group["params"]]


def build_adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters of ``model``."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def cosine_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Learning-rate factor of optimiser step ``step`` (the first is 0): linear to 1 over the warm-up, then half a
    cosine to 0.

    With ``w`` warm-up steps the factors are ``1/w, 2/w, ..., 1`` and then fall, so no step is spent at a rate of 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, warmup_ratio: float, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Cosine schedule with ``ceil(warmup_ratio * total_steps)`` warm-up steps, stepped once an optimiser step."""
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: cosine_factor(step, warmup_steps=warmup_steps, total_steps=total_steps)
    )


def follow_config(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, config: OptimizerConfig
) -> list[str]:
    """Give a restored optimiser the settings of this run's config, which loading a checkpoint replaced.

    Moments and the position in the schedule stay those of the checkpoint. Without this, ``--model.optimizer.lr`` would
    silently have no effect on a continued run.

    Args:
        optimizer: from `build_adamw`, perhaps restored.
        schedule: from `cosine_schedule`, perhaps restored.
        config: what the optimiser must use from now on.

    Returns:
        One line for each setting that changed; none for a fresh run or one continued with its own settings.
    """
    changes: list[str] = []
    for group in optimizer.param_groups:
        decay = config.weight_decay if group[DECAYS] else 0.0
        wanted = {"initial_lr": config.lr, "weight_decay": decay, "betas": tuple(config.betas), "eps": config.eps}
        for name, value in wanted.items():
            before = tuple(group[name]) if name == "betas" else group[name]
            if before != value:
                changes.append(f"continuing with optimizer {name.removeprefix('initial_')} {value} instead of {before}")
            group[name] = value
    schedule.base_lrs = [config.lr for _ in optimizer.param_groups]
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["lr"] = config.lr * factor(schedule.last_epoch)
    return list(dict.fromkeys(changes))
