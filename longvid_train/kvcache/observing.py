"""The block in which a model's forward passes feed calibration statistics.

    statistics = Statistics(cache_shape(model.config))
    with observing(model, statistics):
        for ids, mask in calibration_prompts:
            statistics.begin(sample_ids, mask)
            model(ids, attention_mask=mask, use_cache=False, logits_to_keep=1)

Attention itself goes to SDPA.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longvid_train.errors import UserError
from longvid_train.kvcache.quantizer import cache_shape
from longvid_train.kvcache.statistics import Statistics

OBSERVER_NAME = "longvid_observed"


@contextmanager
def observing(model: Any, statistics: Statistics) -> Iterator[None]:
    """Let every forward pass in the body be observed; afterwards the model is as it was.

    Each pass is announced with `Statistics.begin` and reads whole prompts (no cache). For the same bytes from any
    number of processes, each prompt must be computed alike: one a pass, or always in the same batches.

    Raises:
        UserError: the statistics are for another model.
    """
    shape = cache_shape(model.config)
    if shape != statistics.shape:
        raise UserError(f"the statistics are for {statistics.shape}, the model has {shape}; start new ones")
    decoder = model.get_decoder()

    def observe(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        layer: Any = module.layer_idx
        statistics.observe(int(layer), query.detach(), key.detach(), value.detach())
        output, _ = sdpa_attention_forward(module, query, key, value, *args, **kwargs)
        return output, None

    def check(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        positions = kwargs.get("position_ids")
        if positions is None:
            embeds = kwargs.get("inputs_embeds")
            tokens = embeds if embeds is not None else (args[0] if args else kwargs["input_ids"])
            positions = torch.arange(tokens.shape[1])[None]
        statistics.check_positions(positions)

    AttentionInterface.register(OBSERVER_NAME, observe)
    AttentionMaskInterface.register(OBSERVER_NAME, sdpa_mask)
    with ExitStack() as restoring:
        restoring.callback(decoder.set_attn_implementation, decoder.config._attn_implementation)
        decoder.set_attn_implementation(OBSERVER_NAME)
        restoring.callback(decoder.register_forward_pre_hook(check, with_kwargs=True).remove)
        yield
