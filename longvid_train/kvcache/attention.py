"""The attention function that reads codes, and the block in which a model uses it.

transformers lets a model choose its attention by name, and a mask function under the same name (without one, padded
batches would get no mask). The prompt's first piece attends to itself, so it goes to SDPA; every later query attends to
coded pages, sink and recent tokens and its own piece (`QuantizedLayer.attend`). Calls without a quantized cache go to
SDPA too.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longvid_train.errors import UserError
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.layer import LayerKeys
from longvid_train.kvcache.quantizer import cache_shape
from longvid_train.kvcache.rotation import Rotation

ATTENTION_NAME = "longvid_codes"
_CHANGING_ROTARY_TYPES = ("dynamic", "longrope")


@contextmanager
def attending_on_codes(model: Any) -> Iterator[None]:
    """Let ``model`` read quantized caches in the body; afterwards, also if it raises, the model is as it was.

    Args:
        model: a transformers model with a text decoder, composite or not.

    Raises:
        UserError: the decoder does not attend to all tokens; a cache is for another model or rotation (when used).
    """
    cache_shape(model.config)
    decoder = model.get_decoder()
    AttentionInterface.register(ATTENTION_NAME, attend_codes)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
    with ExitStack() as restoring:
        restoring.callback(decoder.set_attn_implementation, decoder.config._attn_implementation)
        decoder.set_attn_implementation(ATTENTION_NAME)
        restoring.callback(decoder.register_forward_pre_hook(_announce(decoder), with_kwargs=True).remove)
        yield


def rotation_of(model: Any) -> Rotation:
    """The rotary embedding that a model's decoder uses now, a window installed on it included.

    Raises:
        UserError: frequencies change with the input, are rounded, or do not cover the whole head.
    """
    decoder = model.get_decoder()
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None:
        raise UserError(f"{type(decoder).__name__} has no rotary embedding")
    if rotary.rope_type in _CHANGING_ROTARY_TYPES:
        raise UserError(f"rotary frequencies of type '{rotary.rope_type}' change with the input; fix the window first")
    if rotary.inv_freq.dtype != torch.float32:
        raise UserError(
            f"the rotary frequencies were rounded to {rotary.inv_freq.dtype}; load the model with dtype=, not .half()"
        )
    head_dim = cache_shape(model.config).head_dim
    if 2 * len(rotary.inv_freq) != head_dim:
        raise UserError(f"{2 * len(rotary.inv_freq)} of {head_dim} channels are rotated; all of them must be")
    return Rotation(rotary.inv_freq.detach().clone(), float(rotary.attention_scaling))


def attend_codes(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: ``query (B, Hq, Q, D)`` to ``(B, Q, Hq, D)``, and no weights."""
    layer = key.layer if isinstance(key, LayerKeys) else None
    if layer is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    if layer.is_first():
        plain = key.as_subclass(torch.Tensor)
        output, _ = sdpa_attention_forward(module, query, plain, value, attention_mask, scaling=scaling, **kwargs)
    else:
        if kwargs.get("softcap") is not None:
            raise UserError("the quantized cache does not support models that cap their attention scores (softcap)")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = layer.attend(query, attention_mask, scale).transpose(1, 2).contiguous()
    layer.settle()
    return output, None


def _announce(decoder: Any) -> Callable[..., None]:
    """Before every forward pass, tell its cache about padding and positions, and check that they belong together."""

    def announce(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, QuantizedKVCache):
            return
        if cache.get_seq_length() == 0:
            _check_model(decoder, cache)
        tokens = kwargs.get("inputs_embeds")
        tokens = (args[0] if args else kwargs["input_ids"]) if tokens is None else tokens
        cache.begin_forward(tokens.shape[1], kwargs.get("attention_mask"), kwargs.get("position_ids"))

    return announce


def _check_model(decoder: Any, cache: QuantizedKVCache) -> None:
    shape = cache_shape(decoder.config)
    if shape != cache.quantizer.shape:
        raise UserError(
            f"the quantizer is for {cache.quantizer.shape}, the model has {shape}; calibrate for this model"
        )
    if cache.quantizer.rotation is None:
        return
    rotary = decoder.rotary_emb
    different = cache.quantizer.rotation.differs(Rotation(rotary.inv_freq, float(rotary.attention_scaling)))
    if different is not None:
        raise UserError(
            f"the quantizer and the model rotate differently ({different}); use the window it was calibrated under, "
            "or calibrate again"
        )
