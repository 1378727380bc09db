"""Closed forms against models on the meta device: parameters, and operations as torch counts them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel

from longvid_train.cost.decoder import causal_pairs, decoder_shape
from longvid_train.cost.tower import tower_shape
from longvid_train.errors import UserError
from longvid_train.models.backbones import backbone_skeleton
from longvid_train.models.backbones.costs import backbone_shapes
from longvid_train.models.backbones.published import PUBLISHED


def elements(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["llava-onevision-0.5b", "video-llava-7b", "llava-next-video-34b"])
def test_parameters_are_those_of_the_model(name):
    config = PUBLISHED[name]()
    backbone = backbone_skeleton(config)
    shapes = backbone_shapes(config)
    language, head = backbone.model.model.language_model, backbone.model.lm_head
    tied = head.weight is backbone.model.get_input_embeddings().weight
    assert shapes.decoder.elements == elements(language) + (0 if tied else elements(head))
    assert shapes.decoder.elements + shapes.vision_elements == elements(backbone.model)


def test_vicuna_7b_has_the_linear_parameters_of_the_paper():
    shape = decoder_shape(PUBLISHED["video-llava-7b"]().get_text_config())
    assert shape.matrix_elements == 6_476_005_376
    assert shape.kv_values_a_token == 2 * 32 * 4096


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_operations_of_a_prefill_are_those_torch_counts(kv_heads):
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        attn_implementation="eager",
    )
    shape, tokens = decoder_shape(config), 96
    model = LlamaModel(config).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs_embeds=torch.zeros(1, tokens, 64), use_cache=False)
    # torch counts the masked half of the attention too.
    assert counter.get_total_flops() == shape.linear_ops(tokens) + shape.attention_ops(tokens**2)


@pytest.mark.parametrize(("name", "classes"), [("llava-onevision-0.5b", 0), ("llava-1.6-vicuna-7b", 1)])
def test_operations_of_a_tower_are_those_torch_counts(name, classes):
    config, frames = PUBLISHED[name](), 3
    shape = tower_shape(config.vision_config, class_tokens=classes)
    tower = backbone_skeleton(config).model.model.vision_tower
    side = config.vision_config.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(torch.empty(frames, 3, side, side, device="meta"))
    assert counter.get_total_flops() == shape.ops(frames)


def test_a_temporal_attention_costs_four_products_and_its_own_pairs():
    config = PUBLISHED["video-llava-7b"]().vision_config
    alone = tower_shape(config, class_tokens=1)
    joint = tower_shape(config, class_tokens=1, joint_frames=8)
    tokens, width = 257, 1024
    each = 2 * tokens * 4 * width**2 + 4 * tokens * 8 * width
    assert joint.ops(8) - alone.ops(8) == 8 * 24 * each


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (7, 0), (1, 12), (5, 9)])
def test_causal_pairs_are_the_lower_triangle(tokens, past):
    mask = torch.ones(tokens, past + tokens).tril(past)
    assert causal_pairs(tokens, past) == int(mask.sum())


def test_an_unknown_decoder_is_refused_by_name():
    class Other:
        model_type = "mamba"

    with pytest.raises(UserError, match="the language model is a 'mamba'; costs are known for llama, qwen2"):
        decoder_shape(Other())
