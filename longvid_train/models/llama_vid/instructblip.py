"""The tower and the Q-Former of an InstructBLIP checkpoint in transformers' format, as LLaMA-VID starts from them.

InstructBLIP's ``post_layernorm`` is the LayerNorm in front of the Q-Former (LAVIS' ``ln_vision``): LLaMA-VID's tower
is read before it, and its text decoder keeps it as ``vision_norm``. The language model of the checkpoint is not loaded.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    InstructBlipConfig,
    InstructBlipPreTrainedModel,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
)

from longvid_train.models.llama_vid.loading import load_whole, read_model_type
from longvid_train.models.llama_vid.text_decoder_qformer import QFormerTextDecoder
from longvid_train.models.llama_vid.vision_tower import EvaVisionTower

INSTRUCTBLIP_MODEL_TYPE = "instructblip"
PROMPT_TOKENIZER_SUBFOLDER = "qformer_tokenizer"


class InstructBlipEyes(InstructBlipPreTrainedModel):
    """What stands before the language model: loads from any ``InstructBlipForConditionalGeneration`` checkpoint."""

    config_class = InstructBlipConfig
    _keys_to_ignore_on_load_unexpected = (r"^language_projection\.", r"^language_model\.")

    def __init__(self, config: InstructBlipConfig) -> None:
        super().__init__(config)
        self.vision_model = InstructBlipVisionModel(config.vision_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = InstructBlipQFormerModel(config.qformer_config)
        self.post_init()


def load_eyes(source: Path | str) -> InstructBlipEyes:
    """Load the tower, the queries and the Q-Former of an InstructBLIP checkpoint, in eval mode.

    Args:
        source: a local folder, or a hub id (``str``) such as ``Salesforce/instructblip-vicuna-7b``.

    Raises:
        UserError: another model, or weights that are missing, left over or misshapen.
    """
    if isinstance(source, Path):
        read_model_type(source, INSTRUCTBLIP_MODEL_TYPE)
    return load_whole(InstructBlipEyes, source)


def tower_of(eyes: InstructBlipEyes) -> EvaVisionTower:
    """The tower without its last LayerNorm; it shares its weights with ``eyes``."""
    with torch.device("meta"):
        tower = EvaVisionTower(eyes.config.vision_config)
    weights = {name: value for name, value in eyes.vision_model.state_dict().items() if "post_layernorm." not in name}
    tower.load_state_dict(weights, assign=True)
    return tower.eval()


def text_decoder_of(eyes: InstructBlipEyes, vision_width: int) -> QFormerTextDecoder:
    """The Q-Former with its queries and LayerNorm; it shares its weights with ``eyes``.

    Args:
        eyes: a loaded InstructBLIP.
        vision_width: of the tower in front of it. If it is not the width the Q-Former was trained with, a fresh linear
            map (``vision_projector``) comes between.
    """
    config, queries = eyes.config.qformer_config, eyes.query_tokens
    decoder = QFormerTextDecoder(config, vision_width=vision_width, num_queries=queries.shape[1])
    decoder.qformer, decoder.queries = eyes.qformer, queries
    decoder.vision_norm.load_state_dict(eyes.vision_model.post_layernorm.state_dict())
    if isinstance(decoder.vision_projector, nn.Linear):
        nn.init.normal_(decoder.vision_projector.weight, std=config.initializer_range)
        nn.init.zeros_(decoder.vision_projector.bias)
    return decoder.eval()
