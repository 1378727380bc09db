"""The paper's sizes (arXiv 2311.17043, Sec. 4.1): configurations of the public parts, to build without weights.

Vicuna v1.5 (a Llama 2), EVA-CLIP ViT-g/14 or OpenAI's CLIP ViT-L/14, InstructBLIP's Q-Former or a 2-layer BERT.
"""

from typing import Any, Literal

from transformers import BertConfig, CLIPVisionConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig, LlamaConfig

from longvid_train.models.llama_vid.configuration import LlamaVidConfig

Size = Literal["7b", "13b"]
Tower = Literal["eva", "clip"]
Decoder = Literal["qformer", "bert", "none"]

_LANGUAGE: dict[Size, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
BERT_VOCABULARY = 30522
QFORMER_VOCABULARY = BERT_VOCABULARY + 1
"""BERT's, and InstructBLIP's ``[DEC]``."""


def published_config(
    size: Size, *, image_size: int = 224, tower: Tower = "eva", text_decoder: Decoder = "qformer"
) -> LlamaVidConfig:
    """The configuration of a model of the paper.

    Args:
        size: of the language model: Vicuna-7B or -13B v1.5.
        image_size: pixels a side, 224 or 336 in the paper; the tower's position embeddings are of this size.
        tower: EVA-CLIP ViT-g/14, or CLIP ViT-L/14 read at its last layer but one.
        text_decoder: InstructBLIP's Q-Former, a 2-layer BERT, or none (content tokens only).
    """
    vision: Any = InstructBlipVisionConfig(image_size=image_size)
    if tower == "clip":
        vision = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=image_size,
            patch_size=14,
        )
    decoders: dict[Decoder, Any] = {
        "qformer": InstructBlipQFormerConfig(vocab_size=QFORMER_VOCABULARY),
        "bert": BertConfig(num_hidden_layers=2, is_decoder=True, add_cross_attention=True),
        "none": None,
    }
    return LlamaVidConfig(
        vision_config=vision,
        text_decoder_config=decoders[text_decoder],
        text_config=LlamaConfig(
            **_LANGUAGE[size],
            vocab_size=32000,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        visual_token_id=32000,
    )
