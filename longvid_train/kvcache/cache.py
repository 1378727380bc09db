"""A transformers cache whose tokens are codes.

    quantizer = load_quantizer(folder, ...)
    cache = QuantizedKVCache(quantizer)
    with attending_on_codes(model):
        model.generate(**inputs, past_key_values=cache)

The model is not changed; for the length of the block its text decoder uses an attention function that reads the codes
(`attention`). ``B`` rows, ``S`` tokens of the prompt.
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache

from longvid_train.errors import UserError
from longvid_train.kvcache.codec import TEXT, VISUAL
from longvid_train.kvcache.kernels.choice import Decoding, check_decoding
from longvid_train.kvcache.layer import LayerSettings, QuantizedLayer
from longvid_train.kvcache.pages import PAGE_TOKENS
from longvid_train.kvcache.quantizer import Quantizer


@dataclass(frozen=True, kw_only=True)
class CacheBytes:
    """Allocated bytes of a cache, counted from its tensors.

    Attributes:
        coded: codes with the schemes' metadata.
        exact: sink and recent tokens.
        rows: padding, positions and kinds.
        parameters: static parameters.
        coded_numbers: numbers of keys and values that are coded.
    """

    coded: int
    exact: int
    rows: int
    parameters: int
    coded_numbers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.coded + self.exact + self.rows + self.parameters

    @property
    def bits_per_number(self) -> float:
        """Bits of a coded number, metadata included; 0 while nothing is coded."""
        return 8 * self.coded / self.coded_numbers if self.coded_numbers else 0.0


class QuantizedKVCache(Cache):
    """See the module.

    Args:
        quantizer: policy and parameters.
        offload: keep a layer on the CPU except while it is attended to.
        page_tokens: tokens that are decoded at a time at most.
        decoding: ``"auto"``: the kernels on CUDA where they read this cache (`kernels.choice`), else torch, page by
            page; ``"torch"``; or ``"triton"``, which refuses what the kernels cannot read.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        offload: bool = False,
        page_tokens: int = PAGE_TOKENS,
        decoding: Decoding = "auto",
    ) -> None:
        policy = quantizer.policy
        settings = LayerSettings(
            sink_tokens=policy.sink_tokens,
            recent_tokens=policy.recent_tokens,
            block_tokens=policy.block_tokens,
            needs_kinds=policy.separate_visual,
            offload=offload,
            page_tokens=page_tokens,
            decoding=check_decoding(decoding),
        )
        self.quantizer = quantizer
        self._visual: torch.Tensor | None = None
        layers = [QuantizedLayer(*quantizer.codecs(layer), settings) for layer in range(quantizer.shape.layers)]
        super().__init__(layers=layers)

    def describe(self, *, visual: torch.Tensor) -> None:
        """Say which tokens of the prompt are visual; what comes after it is text.

        Args:
            visual: ``(B, S)`` bool, padding included. A cache that holds tokens already, a part of a prompt that goes
                on differently, is told again of these too.

        Raises:
            UserError: the cache holds tokens that were described otherwise.
        """
        held = self.get_seq_length()
        if held and (self._visual is None or not torch.equal(self._visual[:, :held], visual[:, :held])):
            raise UserError(f"the cache holds {held} tokens; describe the prompt before it is read")
        self._visual = visual
        for layer in self._quantized_layers():
            if held:
                layer.describe(self._kinds())
            else:
                layer.begin(kinds=self._kinds(), padding=None, first_position=None)

    def begin_forward(
        self, queries: int, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> None:
        """Take what a forward pass of ``queries`` tokens knows of its rows; the attention block calls this.

        Args:
            queries: new tokens a row.
            attention_mask: ``(B, past + queries)``, 0 at padding; another shape tells nothing of padding.
            position_ids: ``(B or 1, queries)``; without them positions are indices.

        Raises:
            UserError: positions that do not rise by one, where keys are coded before rotation.
        """
        start = self.get_seq_length()
        padding = _left_padding(attention_mask)
        first = None if position_ids is None else position_ids[..., -1].long() - (start + queries - 1)
        if self.quantizer.policy.needs_rotation:
            _check_positions(position_ids, attention_mask, first, start)
        if start == 0:
            if first is not None and padding is not None:
                first = first.expand(len(padding))
            for layer in self._quantized_layers():
                layer.begin(kinds=self._kinds(), padding=padding, first_position=first)

    def reset(self) -> None:
        """Forget all tokens and what was said about them."""
        self._visual = None
        super().reset()

    def used_bytes(self) -> CacheBytes:
        """Allocated bytes by use."""
        layers = [layer.used_bytes() for layer in self._quantized_layers()]
        numbers = 2 * self.quantizer.shape.heads * self.quantizer.shape.head_dim
        return CacheBytes(
            coded=sum(layer.coded for layer in layers),
            exact=sum(layer.exact for layer in layers),
            rows=sum(layer.rows for layer in layers),
            parameters=sum(layer.parameters for layer in layers),
            coded_numbers=numbers * sum(layer.coded_tokens for layer in layers),
        )

    def _kinds(self) -> torch.Tensor | None:
        if self._visual is None:
            return None
        return torch.where(self._visual, VISUAL, TEXT).to(torch.uint8)

    def _quantized_layers(self) -> list[QuantizedLayer]:
        return list(self.layers)


def _left_padding(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """``(B,)`` zeros before the first one of each row."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return (attention_mask.cumsum(-1) == 0).sum(-1)


def _check_positions(
    position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, first: torch.Tensor | None, start: int
) -> None:
    if position_ids is None or first is None:
        return
    if position_ids.dim() != 2:
        raise UserError(
            f"keys coded before rotation need positions of shape (rows, tokens), these are {tuple(position_ids.shape)}"
        )
    index = torch.arange(start, start + position_ids.shape[1], device=position_ids.device)
    wrong = position_ids != index + first[:, None]
    if attention_mask is not None and attention_mask.dim() == 2:
        wrong = wrong & attention_mask[:, start : start + position_ids.shape[1]].bool()
    if wrong.any():
        raise UserError("keys coded before rotation need positions that rise by one; use a scheme with rotary: post")
