"""FLOPs of LLaMA-VID, counted from module shapes, what trains, and the work of a batch; nothing is run.

The convention of model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): multiply-adds of matrix products count
two each; norms, activations, softmax and embedding look-ups count nothing; what is recomputed (gradient checkpointing,
chunked logits, attention kernels) counts once. A product ``y = x w`` costs as much again in the backward pass for each
of ``x`` and ``w`` that needs a gradient, so a frozen part that no gradient passes costs its forward pass only.

Two counts are lower than PaLM's: attention under a causal mask counts the ``S (S + 1) / 2`` (query, key) pairs that the
mask leaves, not ``S ** 2``, and padding counts nothing. A utilisation from these counts is never flattered by either.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration
from longvid_train.models.llama_vid.text_decoder_qformer import QFormerTextDecoder
from longvid_train.models.llama_vid.vision_tower import ClipVisionTower, VisionTower
from longvid_train.training.work import Work

VISION_TOWER = "vision_tower"
TEXT_DECODER = "text_decoder"
CONTEXT_ATTENTION = "context_attention"
CONTENT_PROJECTOR = "content_projector"
LANGUAGE_MODEL = "language_model"
PARTS = (VISION_TOWER, TEXT_DECODER, CONTEXT_ATTENTION, CONTENT_PROJECTOR, LANGUAGE_MODEL)


@dataclass(kw_only=True)
class Flops:
    """FLOPs of a part, added up product by product."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward

    def product(self, flops: int, left: bool, right: bool) -> bool:
        """Count a product of two activations that need a gradient or not; return whether the result does."""
        self.forward += flops
        self.backward += flops * (left + right)
        return left or right

    def linear(self, layer: nn.Module, rows: int, gradient: bool) -> bool:
        """Count ``rows`` rows through a linear layer (with its LoRA adapters); return whether the result needs a
        gradient.

        Args:
            layer: ``nn.Linear``, or peft's LoRA layer around one.
            rows: vectors that pass it.
            gradient: whether they need one.
        """
        base: Any = layer if isinstance(layer, nn.Linear) else layer.base_layer
        carried = self.matrix(base, 2 * rows * base.in_features * base.out_features, gradient)
        for down, up in _active_adapters(layer):
            inner = self.matrix(down, 2 * rows * down.in_features * down.out_features, gradient)
            carried |= self.matrix(up, 2 * rows * up.in_features * up.out_features, inner)
        return carried

    def matrix(self, layer: Any, flops: int, gradient: bool) -> bool:
        """Count a product of an activation with ``layer.weight``; return whether the result needs a gradient."""
        self.product(flops, gradient, layer.weight.requires_grad)
        return gradient or trains(layer)


def trains(module: nn.Module) -> bool:
    """Whether any parameter of ``module`` trains."""
    return any(parameter.requires_grad for parameter in module.parameters())


def count_flops(model: LlamaVidForConditionalGeneration, work: Work, *, skip_masked: bool = True) -> dict[str, Flops]:
    """FLOPs of one training micro-batch by part (``PARTS``); parts the model lacks count 0.

    Args:
        model: also on the meta device; ``requires_grad`` says what trains.
        work: the micro-batch.
        skip_masked: count causal attention without its masked half. False counts whole squares, which is what kernels
            without a causal path compute.
    """
    squares = causal_pairs if skip_masked else square_pairs
    flops = {part: Flops() for part in PARTS}
    features = _tower(flops[VISION_TOWER], model.vision_tower, work.encoded_frames, model.config.visual_grid**2)
    visual = False
    pairs = sum(work.prompts.values())
    if model.text_decoder is not None and model.context_attention is not None and pairs:
        patches = model.config.visual_grid**2
        decoder, attention = flops[TEXT_DECODER], flops[CONTEXT_ATTENTION]
        masked = not isinstance(model.text_decoder, QFormerTextDecoder)
        count_decoder = _bert if masked else _qformer
        queries, gradient = count_decoder(decoder, model.text_decoder, work.prompts, patches, features, squares)
        visual |= _context(attention, model.context_attention, pairs, queries, patches, gradient, features, masked)
    if model.content_projector is not None and work.content_cells:
        gradient = features
        for layer in model.content_projector:
            if not isinstance(layer, nn.GELU):
                gradient = flops[CONTENT_PROJECTOR].linear(layer, work.content_cells, gradient)
        visual |= gradient
    _language_model(flops[LANGUAGE_MODEL], model, work, visual, squares)
    return flops


Pairs = Callable[[int], int]


def causal_pairs(length: int) -> int:
    """(query, key) pairs of a sequence under a causal mask."""
    return length * (length + 1) // 2


def square_pairs(length: int) -> int:
    """(query, key) pairs of a sequence without a mask."""
    return length * length


def _tower(flops: Flops, tower: VisionTower, frames: int, patches: int) -> bool:
    embeddings = tower.embeddings
    kernel = embeddings.patch_embedding.weight
    inputs = tower.config.num_channels if isinstance(tower, ClipVisionTower) else 3
    per_patch = 2 * inputs * embeddings.patch_size**2 * embeddings.embed_dim
    flops.product(frames * patches * per_patch, False, kernel.requires_grad)
    gradient = trains(embeddings)
    if isinstance(tower, ClipVisionTower):
        gradient |= trains(tower.pre_layrnorm)
    tokens = frames * (1 + patches)
    for layer in tower.encoder.layers:
        attention = layer.self_attn
        normed = gradient or trains(layer.layer_norm1)
        if isinstance(tower, ClipVisionTower):
            query, key, value = (
                flops.linear(linear, tokens, normed)
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            output = attention.out_proj
        else:
            query = key = value = flops.linear(attention.qkv, tokens, normed)
            output = attention.projection
        pairs = frames * square_pairs(1 + patches)
        gradient |= _attend(flops, pairs, tower.config.hidden_size, query, key, value, output, tokens)
        gradient |= _chain(flops, (layer.mlp.fc1, layer.mlp.fc2), tokens, gradient or trains(layer.layer_norm2))
    return gradient


def _qformer(
    flops: Flops, decoder: Any, prompts: Mapping[int, int], patches: int, features: bool, _squares: Pairs
) -> tuple[int, bool]:
    """Count a Q-Former, whose self-attention is not causal; return its query outputs and whether they need a
    gradient."""
    queries, pairs = decoder.queries.shape[1], sum(prompts.values())
    words = sum(length * count for length, count in prompts.items())
    attended = sum(square_pairs(queries + length) * count for length, count in prompts.items())
    vision_rows, query_rows = pairs * (1 + patches), pairs * queries
    vision = features
    if isinstance(decoder.vision_projector, nn.Linear):
        vision = flops.linear(decoder.vision_projector, vision_rows, vision)
    vision |= trains(decoder.vision_norm)
    gradient = decoder.queries.requires_grad or trains(decoder.qformer.embeddings)
    width = decoder.config.hidden_size
    for layer in decoder.qformer.encoder.layer:
        gradient = _bert_attention(
            flops, layer.attention, query_rows + words, query_rows + words, attended, width, gradient, gradient
        )
        text = gradient
        if layer.has_cross_attention:
            cross = query_rows * (1 + patches)
            gradient = _bert_attention(
                flops, layer.crossattention, query_rows, vision_rows, cross, width, gradient, vision
            )
        gradient = _bert_mlp(flops, layer.intermediate_query, layer.output_query, query_rows, gradient)
        # The next layer's queries attend to the text, so one flag stands for both.
        gradient |= _bert_mlp(flops, layer.intermediate, layer.output, words, text)
    return query_rows, gradient


def _bert(
    flops: Flops, decoder: Any, prompts: Mapping[int, int], patches: int, features: bool, squares: Pairs
) -> tuple[int, bool]:
    """Count a causal BERT decoder with cross-attention to the patches in every layer; see ``_qformer``."""
    words = sum(length * count for length, count in prompts.items())
    attended = sum(squares(length) * count for length, count in prompts.items())
    vision_rows = sum(prompts.values()) * patches
    vision = flops.linear(decoder.vision_projector, vision_rows, features)
    gradient = trains(decoder.bert.embeddings)
    width = decoder.config.hidden_size
    for layer in decoder.bert.encoder.layer:
        gradient = _bert_attention(flops, layer.attention, words, words, attended, width, gradient, gradient)
        cross = words * patches
        gradient = _bert_attention(flops, layer.crossattention, words, vision_rows, cross, width, gradient, vision)
        gradient = _bert_mlp(flops, layer.intermediate, layer.output, words, gradient)
    return words, gradient


def _context(
    flops: Flops,
    attention: Any,
    pairs: int,
    queries: int,
    patches: int,
    from_decoder: bool,
    features: bool,
    masked: bool,
) -> bool:
    """Count the context attention; ``masked`` when the mean over queries weighs them by a mask."""
    width = attention.key_projector.in_features
    query = flops.linear(attention.query_projector, queries, from_decoder)
    key = flops.linear(attention.key_projector, pairs * patches, features)
    weights = flops.product(2 * queries * patches * width, query, key)
    if masked:
        flops.product(2 * queries * patches, False, weights)
    mixed = flops.product(2 * pairs * patches * width, weights, features)
    return flops.linear(attention.value_projector, pairs, mixed)


def _language_model(
    flops: Flops, model: LlamaVidForConditionalGeneration, work: Work, visual: bool, squares: Pairs
) -> None:
    decoder: Any = model.get_decoder()
    tokens = work.tokens
    attended = sum(squares(length) * count for length, count in work.rows.items())
    gradient = visual or trains(model.get_input_embeddings())
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        normed = gradient or trains(layer.input_layernorm)
        query, key, value = (
            flops.linear(linear, tokens, normed) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        width = attention.config.num_attention_heads * attention.head_dim
        gradient |= _attend(flops, attended, width, query, key, value, attention.o_proj, tokens)
        normed = gradient or trains(layer.post_attention_layernorm)
        gate = flops.linear(mlp.gate_proj, tokens, normed)
        up = flops.linear(mlp.up_proj, tokens, normed)
        gradient |= flops.linear(mlp.down_proj, tokens, gate or up)
    flops.linear(model.get_output_embeddings(), work.supervised, gradient or trains(decoder.norm))


def _attend(
    flops: Flops, pairs: int, width: int, query: bool, key: bool, value: bool, output: nn.Module, rows: int
) -> bool:
    """Count the two products of an attention (``width`` is that of all heads) and its output layer."""
    weights = flops.product(2 * pairs * width, query, key)
    mixed = flops.product(2 * pairs * width, weights, value)
    return flops.linear(output, rows, mixed)


def _bert_attention(
    flops: Flops, block: Any, rows: int, key_rows: int, pairs: int, width: int, gradient: bool, key_gradient: bool
) -> bool:
    """Count a BERT-style attention block; return whether its normed sum with the residual needs a gradient."""
    inner = getattr(block, "attention", None) or block.self
    query = flops.linear(inner.query, rows, gradient)
    key = flops.linear(inner.key, key_rows, key_gradient)
    value = flops.linear(inner.value, key_rows, key_gradient)
    mixed = _attend(flops, pairs, width, query, key, value, block.output.dense, rows)
    return gradient or mixed or trains(block.output)


def _bert_mlp(flops: Flops, inner: Any, output: Any, rows: int, gradient: bool) -> bool:
    return _chain(flops, (inner.dense, output.dense), rows, gradient) or gradient or trains(output)


def _chain(flops: Flops, layers: Iterable[nn.Module], rows: int, gradient: bool) -> bool:
    for layer in layers:
        gradient = flops.linear(layer, rows, gradient)
    return gradient


def _active_adapters(layer: nn.Module) -> list[tuple[Any, Any]]:
    """``(A, B)`` of the LoRA adapters that run beside ``layer``'s base layer."""
    if isinstance(layer, nn.Linear):
        return []
    from peft.tuners.lora import LoraLayer  # takes seconds to import, and only an adapted model needs it

    assert isinstance(layer, LoraLayer), f"{type(layer).__name__} is neither a linear layer nor LoRA's"
    if layer.merged:
        return []
    return [(layer.lora_A[name], layer.lora_B[name]) for name in layer.active_adapters if name in layer.lora_A]
