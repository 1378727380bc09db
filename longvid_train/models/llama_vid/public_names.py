"""Names in the public files of LLaMA-VID, EVA-CLIP, OpenAI's CLIP and InstructBLIP, and what they are called here.

Public sources: ``llamavid/model/llamavid_arch.py`` and ``multimodal_encoder/eva_vit.py`` of dvlab-research/LLaMA-VID,
LAVIS' ``Qformer.py``. A table is a list of rules; a name is matched whole, by the first rule that fits.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Slot = Literal["whole", "query_bias", "value_bias"]


@dataclass(frozen=True)
class Place:
    """Where a public tensor goes.

    Attributes:
        name: parameter of ``LlamaVidForConditionalGeneration``; ``None`` when the model has no use for the tensor.
        slot: ``whole``, or the part of a joined bias ``[query_bias, zeros, value_bias]``.
    """

    name: str | None
    slot: Slot = "whole"


@dataclass(frozen=True)
class Rule:
    """``pattern`` of a public name -> ``target`` (a ``re.sub`` template; ``None``: known and left behind)."""

    pattern: str
    target: str | None
    slot: Slot = "whole"


_WB = r"\.(weight|bias)"


def place(name: str, rules: Iterable[Rule]) -> Place | None:
    """Where ``name`` goes by ``rules``; ``None`` when no rule knows it."""
    for rule in rules:
        found = re.fullmatch(rule.pattern, name)
        if found:
            return Place(None if rule.target is None else found.expand(rule.target), rule.slot)
    return None


LANGUAGE_RULES = (
    Rule(r"model\.(embed_tokens|norm)\.weight", r"language_model.model.\1.weight"),
    Rule(
        r"model\.layers\.(\d+)\."
        r"(self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj|input_layernorm|post_attention_layernorm)\.weight",
        r"language_model.model.layers.\1.\2.weight",
    ),
    Rule(r"lm_head\.weight", "language_model.lm_head.weight"),
    # A buffer that older transformers saved; it follows from rope_theta.
    Rule(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", None),
)
"""A Llama checkpoint such as Vicuna; the names are those of the whole public model too."""

PROJECTOR_RULES = (
    Rule(r"model\.mm_projector\.([02])" + _WB, r"content_projector.\1.\2"),
    Rule(r"model\.vlm_att_projector" + _WB, r"context_attention.query_projector.\1"),
    Rule(r"model\.vlm_att_key_projector" + _WB, r"context_attention.key_projector.\1"),
    Rule(r"model\.vlm_att_val_projector" + _WB, r"context_attention.value_projector.\1"),
    Rule(r"model\.vlm_att_bert_proj" + _WB, r"text_decoder.vision_projector.\1"),
)


def qformer_rules(encoder: str, queries: str, norm: str) -> tuple[Rule, ...]:
    """Rules of a LAVIS Q-Former whose encoder, queries and vision LayerNorm stand under these (escaped) names."""
    layer, ours = encoder + r"\.bert\.encoder\.layer\.(\d+)\.", r"text_decoder.qformer.encoder.layer.\1."
    return (
        Rule(queries, "text_decoder.queries"),
        Rule(norm + _WB, r"text_decoder.vision_norm.\1"),
        Rule(
            encoder + r"\.bert\.embeddings\.(word|position)_embeddings\.weight",
            r"text_decoder.qformer.embeddings.\1_embeddings.weight",
        ),
        Rule(encoder + r"\.bert\.embeddings\.LayerNorm" + _WB, r"text_decoder.qformer.embeddings.layernorm.\1"),
        Rule(layer + r"(attention|crossattention)\.self\.(query|key|value)" + _WB, ours + r"\2.attention.\3.\4"),
        Rule(layer + r"(attention|crossattention)\.output\.(dense|LayerNorm)" + _WB, ours + r"\2.output.\3.\4"),
        Rule(layer + r"(intermediate|intermediate_query)\.dense" + _WB, ours + r"\2.dense.\3"),
        Rule(layer + r"(output|output_query)\.(dense|LayerNorm)" + _WB, ours + r"\2.\3.\4"),
        # 0, 1, 2, ...: a buffer that older transformers saved.
        Rule(encoder + r"\.bert\.embeddings\.position_ids", None),
    )


QFORMER_RULES = qformer_rules(r"model\.vlm_att_encoder", r"model\.vlm_att_query", r"model\.vlm_att_ln")
"""The Q-Former inside a public LLaMA-VID checkpoint."""

INSTRUCTBLIP_RULES = (
    *qformer_rules("Qformer", "query_tokens", "ln_vision"),
    # InstructBLIP's own way into its language model; LLaMA-VID has other projectors.
    Rule(r"llm_proj" + _WB, None),
)
"""LAVIS' ``instruct_blip_vicuna7b_trimmed.pth``."""

BERT_RULES = (
    Rule(
        r"model\.vlm_att_encoder\.bert\.embeddings\.((?:word|position|token_type)_embeddings\.weight)",
        r"text_decoder.bert.embeddings.\1",
    ),
    Rule(r"model\.vlm_att_encoder\.bert\.embeddings\.LayerNorm" + _WB, r"text_decoder.bert.embeddings.LayerNorm.\1"),
    Rule(
        r"model\.vlm_att_encoder\.bert\.encoder\.layer\.(\d+)\."
        r"((?:attention|crossattention)\.self\.(?:query|key|value)|"
        r"(?:attention|crossattention)\.output\.(?:dense|LayerNorm)|"
        r"intermediate\.dense|output\.(?:dense|LayerNorm))" + _WB,
        r"text_decoder.bert.encoder.layer.\1.\2.\3",
    ),
    Rule(r"model\.vlm_att_encoder\.bert\.embeddings\.position_ids", None),
)
"""The light text decoder (public ``bert_type`` ``raw_bert_layer:N``) inside a public LLaMA-VID checkpoint."""


def eva_rules(prefix: str, layers: int) -> tuple[Rule, ...]:
    """Rules of EVA-CLIP's ViT under ``prefix`` (escaped); blocks from ``layers`` on are left behind.

    The public file of EVA-CLIP ViT-g has 40 blocks and the parts of a classifier; BLIP-2, InstructBLIP and LLaMA-VID
    read the output of the last block but one.
    """
    kept = "|".join(str(number) for number in range(layers))
    block, ours = prefix + rf"blocks\.({kept})\.", r"vision_tower.encoder.layers.\1."
    return (
        Rule(prefix + "cls_token", "vision_tower.embeddings.class_embedding"),
        Rule(prefix + "pos_embed", "vision_tower.embeddings.position_embedding"),
        Rule(prefix + r"patch_embed\.proj" + _WB, r"vision_tower.embeddings.patch_embedding.\1"),
        Rule(block + r"norm([12])" + _WB, ours + r"layer_norm\2.\3"),
        Rule(block + r"attn\.q_bias", ours + "self_attn.qkv.bias", "query_bias"),
        Rule(block + r"attn\.v_bias", ours + "self_attn.qkv.bias", "value_bias"),
        Rule(block + r"attn\.qkv\.weight", ours + "self_attn.qkv.weight"),
        Rule(block + r"attn\.proj" + _WB, ours + r"self_attn.projection.\2"),
        Rule(block + r"mlp\.(fc[12])" + _WB, ours + r"mlp.\2.\3"),
        Rule(
            prefix + rf"blocks\.(?!(?:{kept})\.)\d+\."
            r"(?:norm[12]\.(?:weight|bias)|attn\.(?:q_bias|v_bias|qkv\.weight|proj\.(?:weight|bias))|"
            r"mlp\.fc[12]\.(?:weight|bias))",
            None,
        ),
        Rule(prefix + r"(?:norm|fc_norm|head)\.(?:weight|bias)", None),
        Rule(prefix + "mask_token", None),
    )


def clip_rules(prefix: str, layers: int) -> tuple[Rule, ...]:
    """Rules of OpenAI's CLIP ViT as transformers saves it under ``prefix`` (escaped); later layers are left behind."""
    kept = "|".join(str(number) for number in range(layers)) or "(?!)"
    vision, parts = (
        prefix + r"vision_model\.",
        r"(self_attn\.[kvq]_proj|self_attn\.out_proj|layer_norm[12]|mlp\.fc[12])",
    )
    return (
        Rule(vision + r"embeddings\.class_embedding", "vision_tower.embeddings.class_embedding"),
        Rule(
            vision + r"embeddings\.(patch|position)_embedding\.weight",
            r"vision_tower.embeddings.\1_embedding.weight",
        ),
        Rule(vision + "pre_layrnorm" + _WB, r"vision_tower.pre_layrnorm.\1"),
        Rule(vision + rf"encoder\.layers\.({kept})\." + parts + _WB, r"vision_tower.encoder.layers.\1.\2.\3"),
        Rule(vision + rf"encoder\.layers\.(?!(?:{kept})\.)\d+\." + parts + _WB, None),
        Rule(vision + "post_layernorm" + _WB, None),
        Rule(vision + r"embeddings\.position_ids", None),
        # The text half of a whole CLIP.
        Rule(prefix + r"(?:text_model\..+|text_projection\.weight|visual_projection\.weight|logit_scale)", None),
    )


def compact(names: Iterable[str]) -> str:
    """List names in a line, layers as ranges: ``a.{0..31}.b`` for ``a.0.b`` to ``a.31.b``."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for name in names:
        parts = re.split(r"(?<=\.)(\d+)(?=\.)", name, maxsplit=1)
        numbers = groups.setdefault((parts[0], *parts[2:]), [])
        numbers += [int(parts[1])] if len(parts) > 1 else []
    lines = (f"{key[0]}{_ranges(numbers)}{''.join(key[1:])}" for key, numbers in groups.items())
    return ", ".join(sorted(lines))


def _ranges(numbers: list[int]) -> str:
    if len(numbers) < 2:
        return "".join(str(number) for number in numbers)
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(a) if a == b else f"{a}..{b}" for a, b in runs) + "}"
