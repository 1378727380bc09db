"""Generation from a prompt whose visual tokens are given: prefill in chunks, then transformers' own ``generate``.

All of the prompt but its last position passes the decoder a chunk at a time and leaves keys and values only: no logits
are made, and embeddings exist for one chunk at once. The visual tokens may stay in main memory until their chunk.
``B`` rows, ``S`` tokens of the longest prompt, ``T_r`` visual tokens of row ``r``, ``H`` language-model width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from longvid_train.errors import UserError
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.models.splice import embed_and_splice

PREFILL_CHUNK = 1024
"""Positions that pass the decoder at once: at 7B the widest layer of this many takes about 0.1 GB in 16 bits."""


@torch.no_grad()
def generate_from_tokens(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    visual_tokens: Sequence[torch.Tensor],
    *,
    placeholder_id: int,
    prefill_chunk: int = PREFILL_CHUNK,
    cache: Cache | None = None,
    **options: Any,
) -> Any:
    """Generate behind a left-padded batch of prompts.

    Args:
        model: transformers' model with ``generate``, in eval mode.
        input_ids: ``(B, S)`` int64 with one ``placeholder_id`` a visual token, padded on the left.
        attention_mask: ``(B, S)`` int64, 1 on real tokens.
        visual_tokens: ``(T_r, H)`` of each row in reading order, on any device.
        placeholder_id: stands for one visual token; may lie outside the vocabulary.
        prefill_chunk: positions that pass the decoder at once.
        cache: to fill; default: transformers' ``DynamicCache``. It may hold the prompt's first positions, all but the
            last at most: then prefill goes on behind them. A quantized cache needs ``attending_on_codes`` around the
            call; which tokens of the prompt are visual is told to it here.
        **options: of transformers' ``generate``.

    Returns:
        What transformers returns for a prompt of ids: ``(rows, S + new)`` ids with the prompt in front.

    Raises:
        UserError: a row's placeholders and visual tokens differ in number, ``prefill_chunk`` is below 1, or the cache
            holds as many tokens as the prompt, or more.
    """
    if prefill_chunk < 1:
        raise UserError(f"prefill_chunk is {prefill_chunk}; it must be at least 1 token")
    prompt = _Prompt(model, input_ids, attention_mask, visual_tokens, placeholder_id)
    last = input_ids.shape[1] - 1
    if cache is None:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    read = cache.get_seq_length()
    if read > last:
        raise UserError(f"the cache holds {read} tokens, the prompt has {last + 1}; give one that holds a part of it")
    if isinstance(cache, QuantizedKVCache) and cache.quantizer.policy.separate_visual:
        cache.describe(visual=prompt.placeholders)
    decoder, positions = model.get_decoder(), (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    for start in range(read, last, prefill_chunk):
        end = min(start + prefill_chunk, last)
        decoder(
            inputs_embeds=prompt.embeddings(start, end),
            attention_mask=attention_mask[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
    if options.get("num_beams", 1) > 1 and last:
        cache.batch_repeat_interleave(options["num_beams"])
    if bool((input_ids[:, last] == placeholder_id).any()):
        # transformers reads the last position only; the others are views of it
        options["inputs_embeds"] = prompt.embeddings(last, last + 1).expand(-1, last + 1, -1)
    return model.generate(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, **options)


class _Prompt:
    """Embeddings of any stretch of positions, spliced when they are asked for.

    Attributes:
        placeholders: ``(B, S)`` bool, the visual tokens.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        visual_tokens: Sequence[torch.Tensor],
        placeholder_id: int,
    ) -> None:
        self._embedding = model.get_input_embeddings()
        self._input_ids = input_ids
        self._tokens = visual_tokens
        self._placeholder_id = placeholder_id
        self.placeholders = (input_ids == placeholder_id) & attention_mask.bool()
        self._before = torch.nn.functional.pad(self.placeholders.cumsum(dim=1), (1, 0)).tolist()
        for row, (tokens, before) in enumerate(zip(visual_tokens, self._before, strict=True)):
            if len(tokens) != before[-1]:
                raise UserError(
                    f"row {row} of the prompt holds {before[-1]} visual placeholders (id {placeholder_id}) but "
                    f"{len(tokens)} visual tokens are given; make the prompt with the plan's count"
                )

    def embeddings(self, start: int, end: int) -> torch.Tensor:
        """``(B, end - start, H)``."""
        ids = self._input_ids[:, start:end]
        parts = [
            tokens[before[start] : before[end]].to(ids.device)
            for tokens, before in zip(self._tokens, self._before, strict=True)
        ]
        return embed_and_splice(self._embedding, ids, torch.cat(parts), self._placeholder_id)
