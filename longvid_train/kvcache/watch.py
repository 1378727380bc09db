"""One row of attention, and how often a cached token counts, while the model runs its own fast attention.

    watch = AttentionWatch(range(5, 21))
    with watching(model, watch):
        model.generate(..., past_key_values=cache)
        attention = watch.row()

A layer of the band keeps its last query and a reference to the keys it read: no attention weights are made until a row
is asked for, then those of one query, from the full-precision keys or from the codes of a `QuantizedKVCache`, a page
decoded at a time.

A token that stands ``c`` times in a sequence, at one position, has ``c`` equal scores: its weight is ``c exp(score)``,
as if ``ln c`` were added to the score once; a token that is gone has minus infinity. So copying and dropping cached
tokens is one addition to a row of scores (`AttentionWatch.set_multiplicity`); keys and values stay where they are.

One row a batch. ``Hq`` query heads, ``T`` cached tokens, ``D`` head dim.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longvid_train.errors import UserError
from longvid_train.kvcache.attention import ATTENTION_NAME, attend_codes
from longvid_train.kvcache.layer import LayerKeys, QuantizedLayer

WATCHED_NAME = "longvid_watched"
_WATCH = "attention_watch"
_INNER = {"sdpa": sdpa_attention_forward, ATTENTION_NAME: attend_codes}


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a layer read last: ``(1, Hq, 1, D)`` query, keys, ``(T,)`` addition to the scores or ``None``."""

    query: torch.Tensor
    keys: torch.Tensor | QuantizedLayer
    scaling: float
    bias: torch.Tensor | None


class AttentionWatch:
    """See the module.

    Args:
        layers: whose attention `row` averages.
    """

    def __init__(self, layers: range) -> None:
        self.layers = layers
        self._seen: dict[int, _Seen] = {}
        self._bias: torch.Tensor | None = None
        self._padded: torch.Tensor | None = None

    def weights(self, layer: int) -> torch.Tensor:
        """``(Hq, T)`` float32: attention of the last query in one layer of the band, copies counted."""
        seen = self._seen[layer]
        if isinstance(seen.keys, QuantizedLayer):
            scores = seen.keys.scores(seen.query, seen.scaling)[0, :, 0]
        else:
            keys = seen.keys[0].float()
            grouped = seen.query[0, :, 0].float().reshape(len(keys), -1, keys.shape[-1]) * seen.scaling
            scores = (grouped @ keys.transpose(-1, -2)).flatten(0, 1)
        return (scores if seen.bias is None else scores + seen.bias.float()).softmax(-1)

    def row(self) -> torch.Tensor:
        """``(T,)`` float32: `weights` averaged over heads and the band; sums to 1."""
        total: torch.Tensor = sum(self.weights(layer).mean(0) for layer in self.layers)  # type: ignore[assignment]
        return total / len(self.layers)

    def set_multiplicity(self, counts: torch.Tensor | None) -> None:
        """Let cached tokens count several times, or not at all, from the next forward pass on.

        Args:
            counts: ``(P,)`` how often each of the cache's first ``P`` tokens counts, 0 or more; those behind count
                once. ``None``: all count once.
        """
        self._bias = None if counts is None else counts.float().log()
        self._padded = None

    def forget(self) -> None:
        """Let go of queries and keys; a cropped cache does not fit them."""
        self._seen.clear()

    def _see(self, layer: int, query: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor | None:
        """Note what a layer reads; the addition to its scores ``(T,)``, if any."""
        cache_layer = keys.layer if isinstance(keys, LayerKeys) else None
        bias = self._addition(keys.shape[2] if cache_layer is None else cache_layer.get_seq_length(), query)
        if layer in self.layers:
            self._seen[layer] = _Seen(query[:, :, -1:].detach(), cache_layer or keys.detach(), scaling, bias)
        return bias

    def _addition(self, tokens: int, query: torch.Tensor) -> torch.Tensor | None:
        if self._bias is None:
            return None
        if self._padded is None or len(self._padded) != tokens:
            own = self._bias.to(device=query.device, dtype=query.dtype)
            self._padded = pad(own, (0, tokens - len(own)))
        return self._padded


@contextmanager
def watching(model: Any, watch: AttentionWatch) -> Iterator[None]:
    """Let ``watch`` see the decoder's attention in the body; afterwards, also if it raises, the model is as it was.

    Inside ``attending_on_codes`` it sees attention on codes.

    Args:
        model: a transformers model with a text decoder whose layers have a ``self_attn``.
        watch: sees every forward pass of one row.

    Raises:
        UserError: the decoder's attention is not SDPA and not that on codes, or a layer of the band does not exist.
    """
    decoder = model.get_decoder()
    name = decoder.config._attn_implementation
    if name not in _INNER:
        raise UserError(
            f"the model's attention is '{name}', and rows of attention are read beside 'sdpa' only; "
            "load it with attn_implementation='sdpa'"
        )
    if watch.layers and not 0 <= watch.layers[0] <= watch.layers[-1] < len(decoder.layers):
        raise UserError(
            f"layers {watch.layers[0]} to {watch.layers[-1]} are outside the decoder's 0 to {len(decoder.layers) - 1}; "
            "choose a band inside"
        )
    AttentionInterface.register(WATCHED_NAME, _attend_watched)
    AttentionMaskInterface.register(WATCHED_NAME, sdpa_mask)
    with ExitStack() as restoring:
        restoring.callback(decoder.set_attn_implementation, name)
        decoder.set_attn_implementation(WATCHED_NAME)
        restoring.callback(watch.forget)
        for layer in decoder.layers:
            hook = layer.self_attn.register_forward_pre_hook(_handing(watch, name), with_kwargs=True)
            restoring.callback(hook.remove)
        yield


def _handing(watch: AttentionWatch, name: str) -> Any:
    """A hook that hands the watch to the attention function, through the module's further keyword arguments."""

    def hand(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, _WATCH: (watch, name)}

    return hand


def _attend_watched(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: ``query (1, Hq, Q, D)`` to ``(1, Q, Hq, D)``, and no weights."""
    watch, name = kwargs.pop(_WATCH)
    index: Any = module.layer_idx
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = watch._see(int(index), query, key, scale)
    mask = attention_mask if bias is None else _added(attention_mask, bias, query.shape[2])
    output, _ = _INNER[name](module, query, key, value, mask, scaling=scaling, **kwargs)
    return output, None


def _added(mask: torch.Tensor | None, bias: torch.Tensor, queries: int) -> torch.Tensor:
    """``(1, 1, Q, T)``: a mask and an addition to the scores in one."""
    if mask is None:
        assert queries == 1, "tokens count several times only while an answer is generated, one token at a time"
        return bias[None, None, None]
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, -torch.inf)
    return mask + bias
