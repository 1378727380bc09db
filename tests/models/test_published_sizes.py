"""The paper's models on the meta device: parameters of every part worked out from the public architectures."""

import pytest
import torch

from longvid_train.models.llama_vid import LlamaVidForConditionalGeneration
from longvid_train.models.llama_vid.sizes import published_config

Q, C, CLIP = 768, 1408, 1024
LANGUAGE = {"7b": (4096, 6_738_415_616), "13b": (5120, 13_015_864_320)}  # Llama 2's published counts


def linear(rows, columns):
    return rows * columns + rows


def eva(side):
    block = 3 * C * C + 3 * C + linear(C, C) + 4 * C + linear(6144, C) + linear(C, 6144)
    return 39 * block + linear(C, 3 * 14 * 14) + C + (1 + (side // 14) ** 2) * C


def clip(side):
    layer = 4 * linear(CLIP, CLIP) + 4 * CLIP + linear(4096, CLIP) + linear(CLIP, 4096)
    return 23 * layer + CLIP * 3 * 14 * 14 + CLIP + (1 + (side // 14) ** 2) * CLIP + 2 * CLIP


def bert_layer(*, cross_width):
    attention = 4 * linear(Q, Q) + 2 * Q
    feed_forward = linear(3072, Q) + linear(Q, 3072) + 2 * Q
    cross = 2 * linear(Q, Q) + 2 * linear(Q, cross_width) + 2 * Q if cross_width else 0
    return attention + feed_forward + cross, feed_forward


def qformer(vision_width):
    layers = sum(sum(bert_layer(cross_width=C if number % 2 == 0 else 0)) for number in range(12))
    projector = 0 if vision_width == C else linear(C, vision_width)
    return layers + (30523 + 512) * Q + 2 * Q + 32 * Q + 2 * C + projector


def bert(vision_width):
    return 2 * bert_layer(cross_width=Q)[0] + (30522 + 512 + 2) * Q + 2 * Q + linear(Q, vision_width)


CASES = [
    ("7b", 224, "eva", "qformer"),
    ("7b", 336, "eva", "qformer"),
    ("7b", 224, "eva", "bert"),
    ("7b", 224, "eva", "none"),
    ("7b", 224, "clip", "qformer"),
    ("7b", 336, "clip", "bert"),
    ("13b", 224, "eva", "qformer"),
    ("13b", 336, "eva", "qformer"),
    ("13b", 224, "eva", "bert"),
]


@pytest.mark.parametrize(("size", "side", "tower", "decoder"), CASES)
def test_parameters_of_every_part_and_in_total(size, side, tower, decoder):
    config = published_config(size, image_size=side, tower=tower, text_decoder=decoder)
    with torch.device("meta"):
        model = LlamaVidForConditionalGeneration(config)
    vision_width, (width, language) = {"eva": C, "clip": CLIP}[tower], LANGUAGE[size]
    expected = {
        "vision_tower": {"eva": eva, "clip": clip}[tower](side),
        "content_projector": linear(width, vision_width) + linear(width, width),
        "language_model": language,
    }
    if decoder != "none":
        expected["text_decoder"] = {"qformer": qformer, "bert": bert}[decoder](vision_width)
        expected["context_attention"] = (
            linear(vision_width, Q) + linear(vision_width, vision_width) + linear(width, vision_width)
        )
    found = {name: sum(value.numel() for value in part.parameters()) for name, part in model.named_children()}
    assert found == expected
    assert sum(value.numel() for value in model.parameters()) == sum(expected.values())
    context = int(decoder != "none")
    patches = {224: 256, 336: 576}[side]
    assert [config.tokens_per_frame(grid) for grid in (1, 2, 4, 0)] == [context + n for n in (1, 4, 16, patches)]


def test_the_counts_that_others_publish():
    assert eva(224) + 2 * C == 985_952_256  # BLIP-2's tower, which has one LayerNorm more
    assert clip(224) == 303_179_776 - 12_596_224 - 2 * CLIP  # CLIP ViT-L/14 less its last layer and LayerNorm
