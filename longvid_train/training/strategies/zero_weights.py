"""Where the weights are under ZeRO-3, and how they are read under all stages.

At stage 3 only the language model's layers are sharded. The other parts stay whole on each rank: DeepSpeed gathers a
module's weights each time it is called and demands that all ranks call the same modules in the same order, but how
often the tower, the text decoder, the projections and the head are called depends on a rank's frames and answers.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def loading_in_shards(config: Any) -> Iterator[None]:
    """Within, transformers' ``from_pretrained`` makes shards: each rank holds one module whole at a time.

    Args:
        config: DeepSpeed's configuration with stage 3.
    """
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # transformers keeps a weak reference: the object must live as long as the context.
    held = HfDeepSpeedConfig(config)
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del held


def forget_unused_renames(model: Any) -> None:
    """Have a model that was loaded in shards save the names that it has.

    transformers notes the renames of old checkpoints for saving; loading in shards notes them also where the checkpoint
    had the new names, and saving would write ``LayerNorm.gamma`` for ``LayerNorm.weight``.
    """
    vars(model).pop("_weight_conversions", None)


def is_sharded(value: nn.Parameter) -> bool:
    """Whether ZeRO-3 manages a parameter."""
    return hasattr(value, "ds_id")


def full_size(value: nn.Parameter) -> int:
    """Elements of a parameter, all shards together."""
    return int(getattr(value, "ds_numel", value.numel()))


def broadcast_replicated(model: nn.Module) -> None:
    """Give parameters that are not in shards yet (LoRA's) the values of rank 0.

    Stages 1 and 2 do this by themselves; stage 3 would cut each rank's own values into shards.
    """
    for value in model.parameters():
        if not is_sharded(value):
            torch.distributed.broadcast(value.data, src=0)


@contextmanager
def without_hooks(model: nn.Module, sharded: Sequence[nn.Module]) -> Iterator[None]:
    """Take away, at the end, the hooks that modules outside ``sharded`` got within; the root keeps its own."""
    inside = {id(module) for part in sharded for module in part.modules()} | {id(model)}
    outside = [module for module in model.modules() if id(module) not in inside]
    before = [(module, dict(module._forward_pre_hooks), dict(module._forward_hooks)) for module in outside]
    try:
        yield
    finally:
        for module, pre_hooks, hooks in before:
            _keep_only(module._forward_pre_hooks, pre_hooks)
            _keep_only(module._forward_hooks, hooks)


def keep_whole(engine: Any, model: nn.Module, sharded: Sequence[nn.Module]) -> None:
    """Gather what is not in ``sharded`` and let DeepSpeed keep it so, also behind every step and checkpoint."""
    inside = {id(value) for part in sharded for value in part.parameters()}
    kept = engine.optimizer.persistent_parameters
    known = {id(value) for value in kept}
    parameters: Iterator[Any] = model.parameters()
    for value in parameters:
        if id(value) not in inside:
            value.ds_persist = True
        if value.ds_persist and id(value) not in known:
            kept.append(value)
    if kept:
        kept[0].all_gather(kept)


@contextmanager
def masters_in_place(model: nn.Module, *, keep: bool) -> Iterator[None]:
    """Within, the parameters of ``model`` are whole and float32, in host memory, where ``keep``; all ranks enter.

    They are gathered one after another, so no more than one at a time is whole on the device.
    """
    parameters = list(model.parameters())
    before = [value.data for value in parameters]
    whole = [_master(value, keep=keep) for value in parameters]
    try:
        if keep:
            _put(parameters, whole)
        yield
    finally:
        _put(parameters, before)


def _master(value: nn.Parameter, *, keep: bool) -> torch.Tensor:
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if value.requires_grad:
        return _kept(safe_get_full_fp32_param(value), keep=keep)
    with GatheredParameters([value], enabled=is_sharded(value)):
        return _kept(value, keep=keep)


def _kept(value: torch.Tensor, *, keep: bool) -> torch.Tensor:
    """A copy: DeepSpeed's tensors may lie in one buffer, and safetensors refuses shared memory."""
    return value.detach().to("cpu", torch.float32, copy=True) if keep else torch.empty(0)


def _put(parameters: Iterable[nn.Parameter], values: Iterable[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value


def _keep_only(hooks: dict[int, Any], wanted: dict[int, Any]) -> None:
    for key in hooks.keys() - wanted.keys():
        del hooks[key]
