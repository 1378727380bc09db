"""The language model of a backbone, with visual tokens in their places.

``B`` rows, ``S`` tokens a row, ``T`` visual tokens of the batch, ``H`` language-model width.
"""

from typing import Any

import torch

from longvid_train.errors import UserError
from longvid_train.models.backbones.protocol import Backbone
from longvid_train.models.prefill import PREFILL_CHUNK, generate_from_tokens
from longvid_train.models.splice import embed_and_splice


def multimodal_embeddings(backbone: Backbone, input_ids: torch.Tensor, visual_tokens: torch.Tensor) -> torch.Tensor:
    """Embed ``(B, S)`` ids with the ``(T, H)`` visual tokens at the placeholders, in reading order: ``(B, S, H)``.

    Raises:
        UserError: placeholders and visual tokens differ in number.
    """
    embedding = backbone.model.get_input_embeddings()
    device = next(embedding.parameters()).device
    return embed_and_splice(embedding, input_ids.to(device), visual_tokens.to(device), backbone.facts.placeholder_id)


def video_logits(
    backbone: Backbone,
    input_ids: torch.Tensor,
    visual_tokens: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None = None,
    last: int = 1,
) -> torch.Tensor:
    """Logits of the ``last`` positions (0: of all), ``(B, last, vocabulary)``.

    Raises:
        UserError: see `multimodal_embeddings`.
    """
    embeds = multimodal_embeddings(backbone, input_ids, visual_tokens)
    outputs = backbone.model(inputs_embeds=embeds, attention_mask=attention_mask, logits_to_keep=last, use_cache=False)
    logits: torch.Tensor = outputs.logits
    return logits


def generate(
    backbone: Backbone,
    input_ids: torch.Tensor,
    visual_tokens: torch.Tensor,
    *,
    attention_mask: torch.Tensor | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    **options: Any,
) -> Any:
    """transformers' ``generate`` behind prompts with visual tokens; every step makes the logits of one position only.

    Args:
        backbone: whose model generates.
        input_ids: ``(B, S)`` int64, padded on the left.
        visual_tokens: ``(T, H)`` of the batch in reading order.
        attention_mask: ``(B, S)``; default: all tokens are real.
        prefill_chunk: positions of the prompt that pass the decoder at once.
        **options: of transformers' ``generate``.

    Returns:
        ``(B, new)`` ids without the prompt.

    Raises:
        UserError: placeholders and visual tokens differ in number.
    """
    device = backbone.model.get_input_embeddings().weight.device
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    placeholder_id = backbone.facts.placeholder_id
    counts = (input_ids == placeholder_id).sum(dim=1).tolist()
    if sum(counts) != len(visual_tokens):
        raise UserError(
            f"input_ids hold {sum(counts)} visual placeholders (id {placeholder_id}) but {len(visual_tokens)} visual "
            "tokens are given; make the prompt with the plan's count"
        )
    output = generate_from_tokens(
        backbone.model,
        input_ids.to(device),
        mask.to(device),
        torch.split(visual_tokens, counts),
        placeholder_id=placeholder_id,
        prefill_chunk=prefill_chunk,
        **options,
    )
    return output[:, input_ids.shape[1] :]
