"""Less memory for the activations of long sequences: MLPs in tiles, and what is kept for the backward pass on the host.

Both change a loaded language model's modules for the run and no number of it: tiles of an MLP are tokens, each of which
it maps alone, and a copy to the host and back has the same bits. The names and the saved weights stay the model's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn
from torch.nn.functional import pad

from longvid_train.errors import UserError
from longvid_train.training.lora import LoraSettings
from longvid_train.training.strategies.zero import ZeroStrategy
from longvid_train.training.strategies.zero_weights import is_sharded


@dataclass(frozen=True, kw_only=True)
class ActivationMemory:
    """What is done about the language model's activations, beside gradient checkpointing.

    Attributes:
        offload: keep the layers' inputs, from which gradient checkpointing recomputes the rest, in host memory.
        mlp_tile_tokens: tokens that an MLP maps at once, one more forward pass of the MLPs for it (DeepSpeed's
            ``TiledMLP``, arXiv 2506.13996, Sec. 3.3); 0 maps all at once.
    """

    offload: bool = False
    mlp_tile_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse a negative tile."""
        if self.mlp_tile_tokens < 0:
            raise UserError(
                f"activations.mlp_tile_tokens is {self.mlp_tile_tokens}; it must be 0 (off) or a number of tokens, "
                "e.g. 4096"
            )


def check_activation_memory(
    settings: ActivationMemory, strategy: Strategy, lora: LoraSettings | None, *, gradient_checkpointing: bool
) -> None:
    """Refuse, before weights load, what would give other gradients or keep more on the host than it saves.

    Raises:
        UserError: offload without gradient checkpointing; tiles under DDP, which takes a tile's gradient for the whole,
            or with LoRA's dropout, which would be drawn anew for the second pass.
    """
    if settings.offload and not gradient_checkpointing:
        raise UserError(
            "activations.offload moves the inputs that gradient checkpointing keeps; set gradient_checkpointing to true"
        )
    if not settings.mlp_tile_tokens:
        return
    if isinstance(strategy, DDPStrategy) and not isinstance(strategy, ZeroStrategy):
        raise UserError(
            "activations.mlp_tile_tokens: DDP would reduce the gradient of the first tile; use --config "
            "configs/deepspeed/zero2.yaml, or set it to 0"
        )
    if lora is not None and lora.dropout:
        raise UserError(
            f"activations.mlp_tile_tokens with lora.dropout {lora.dropout}: an MLP is computed again in the backward "
            "pass, with other dropout; set one of them to 0"
        )


def apply_activation_memory(decoder: Any, settings: ActivationMemory) -> None:
    """Have a loaded language model follow the settings from now on.

    Args:
        decoder: a transformers language model without its head; its layers are ``decoder.layers`` with an ``mlp`` each.
        settings: what to do.
    """
    if settings.mlp_tile_tokens:
        for layer in decoder.layers:
            layer.mlp.forward = tiled_forward(layer.mlp, settings.mlp_tile_tokens)
    if settings.offload:
        decoder.forward = offloading_forward(decoder.forward)


def offloading_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` with what it saves for the backward pass in host memory, page-locked for GPUs."""

    @wraps(forward)
    def on_host(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
            return forward(*args, **kwargs)

    return on_host


def tiled_forward(mlp: nn.Module, tile_tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward pass of ``mlp`` over ``(..., S, H)`` in tiles, where a gradient passes through it.

    Rows of zeros make all tiles equal: ranks may agree on more tiles than their own tokens fill, and DeepSpeed's
    ``TiledMLP`` reports gradients to ZeRO with tile number ``tiles``, of which ``torch.chunk`` may make fewer.

    Args:
        mlp: maps each token alone.
        tile_tokens: tokens of a tile, at most.
    """
    whole = mlp.forward
    parameters = list(mlp.parameters())

    @wraps(whole)
    def forward(states: torch.Tensor) -> torch.Tensor:
        if not (torch.is_grad_enabled() and states.requires_grad):
            mapped: torch.Tensor = whole(states)
            return mapped
        from deepspeed.runtime.sequence_parallel.ulysses_sp import TiledMLP

        flat = states.reshape(-1, states.shape[-1])
        tiles = _agreed(-(-len(flat) // tile_tokens), parameters, flat.device)
        missing = -len(flat) % tiles
        padded = pad(flat, (0, 0, 0, missing)) if missing else flat
        made: torch.Tensor = TiledMLP.apply(_under_this_autocast(whole, flat.device), mlp, padded, tiles, parameters)
        return made[: len(flat)].reshape(states.shape)

    return forward


def _agreed(tiles: int, parameters: Sequence[nn.Parameter], device: torch.device) -> int:
    """The largest number of tiles of any rank where ZeRO-3 gathers weights for each tile, on all ranks together."""
    if not any(is_sharded(value) for value in parameters):
        return tiles
    most = torch.tensor(tiles, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return int(most)


def _under_this_autocast(
    whole: Callable[[torch.Tensor], torch.Tensor], device: torch.device
) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """``whole`` as ``TiledMLP`` calls it, also in the backward pass, where autocast is over."""
    enabled, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)

    def tile(_mlp: nn.Module, states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=enabled):
            return whole(states)

    return tile
