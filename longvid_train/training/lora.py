"""LoRA in a stage: low-rank matrices where ``lora.target_modules`` says, whole modules where the stage's patterns say.

The public LLaMA-VID code trains a 7B language model in full in stages 2 and 3; its users asked for LoRA.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from longvid_train.errors import UserError
from longvid_train.models.lora import LoraShape, insert_lora
from longvid_train.training.stages import Stage, StageReport, mark_trainable, select_names, settle


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685).

    Attributes:
        r: rank of the update of each targeted layer.
        alpha: the update is scaled by ``alpha / r``.
        target_modules: globs as in ``stage.trainable``, over the paths of linear layers and the modules above them:
            ``language_model.model`` is every linear layer of the decoder, ``language_model.*.q_proj`` its query maps.
        dropout: of the input of the low-rank matrices, in training.
    """

    r: int
    alpha: float
    target_modules: list[str]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if self.r < 1:
            raise UserError(f"lora.r is {self.r}; it must be at least 1, e.g. 64")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"lora.alpha is {self.alpha}; it must be a positive number, e.g. 16")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}; it must be at least 0 and below 1, e.g. 0.05")
        if not self.target_modules:
            raise UserError("lora.target_modules is empty; name linear layers, e.g. [language_model.model]")


def plan_lora(model: nn.Module, stage: Stage, lora: LoraSettings) -> LoraShape:
    """Decide which layers get low-rank matrices and which modules train in full; a model on the meta device will do.

    ``requires_grad`` of the model's parameters is left as the stage's patterns say.

    Raises:
        UserError: a pattern that matches nothing, a target that the stage trains in full or that shares its weight with
            another module, or a stage that trains part of a module.
    """
    mark_trainable(model, stage)
    linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    chosen = select_names(linear, lora.target_modules, owner="lora.target_modules", kind="linear layer")
    if not chosen:
        raise UserError(f"lora.target_modules {lora.target_modules} selects no layer; take away less with '!'")
    targets = tuple(name for name in linear if name in chosen)
    for name in targets:
        _check_target(model, name, stage)
    return LoraShape(
        r=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=targets,
        modules_to_save=tuple(_whole_modules(model, stage)),
    )


def apply_lora(model: nn.Module, shape: LoraShape) -> StageReport:
    """Insert the planned adapters; what neither they nor the stage train is frozen and in eval mode."""
    insert_lora(model, shape)
    return settle(model)


def _check_target(model: nn.Module, name: str, stage: Stage) -> None:
    weight = model.get_submodule(name).weight
    if weight.requires_grad:
        raise UserError(
            f"lora.target_modules selects '{name}', which stage '{stage.name}' trains in full; leave it out of one of "
            f"them, e.g. with '!{name.split('.')[0]}' in stage.trainable"
        )
    sharers = [path for path, value in model.named_parameters(remove_duplicate=False) if value is weight]
    if len(sharers) > 1:
        raise UserError(
            f"lora.target_modules selects '{name}', whose weight is also {sharers[0]}; take it away with '!{name}'"
        )


def _whole_modules(model: nn.Module, stage: Stage, path: str = "") -> Iterator[str]:
    """Yield the outermost modules all of whose parameters train.

    Raises:
        UserError: a parameter trains whose own module also holds frozen ones: adapter files hold whole modules.
    """
    own = list(model.parameters())
    if not any(value.requires_grad for value in own):
        return
    if all(value.requires_grad for value in own):
        yield path
        return
    for name, value in model.named_parameters(prefix=path, recurse=False):
        if value.requires_grad:
            raise UserError(
                f"stage '{stage.name}' trains {name} but not all of '{path}': with lora, name whole modules in "
                "stage.trainable"
            )
    for name, child in model.named_children():
        yield from _whole_modules(child, stage, f"{path}.{name}" if path else name)
