"""Tiny random LLaMA-VIDs of every kind and a mixed batch."""

import pytest
import torch
from transformers import BertConfig, CLIPVisionConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig, LlamaConfig

from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration

VISUAL_ID = 60


def eva_config(**fields):
    defaults = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
        "initializer_range": 0.2,
    }
    return InstructBlipVisionConfig(**(defaults | fields))


def clip_config():
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
        initializer_range=0.2,
    )


def qformer_config(**fields):
    defaults = {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "encoder_hidden_size": 32,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    return InstructBlipQFormerConfig(**(defaults | fields))


def bert_config():
    return BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=64,
        is_decoder=True,
        add_cross_attention=True,
        initializer_range=0.2,
    )


def llama_config(**fields):
    defaults = {
        "vocab_size": 60,
        "hidden_size": 40,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.1,
    }
    return LlamaConfig(**(defaults | fields))


def build(vision, decoder, seed=0, language=None, **fields):
    torch.manual_seed(seed)
    config = LlamaVidConfig(
        vision_config=vision,
        text_decoder_config=decoder,
        text_config=language or llama_config(),
        visual_token_id=VISUAL_ID,
        max_prompt_tokens=16,
        num_queries=4,
        **({"frame_chunk": 3} | fields),
    )
    model = LlamaVidForConditionalGeneration(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1: make them count
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for parameter in (model.context_attention or model.content_projector).parameters():
            parameter.mul_(0.5)
    return model


KINDS = {
    "eva-qformer": lambda: build(eva_config(), qformer_config()),
    "eva-bert": lambda: build(eva_config(), bert_config()),
    "clip-qformer": lambda: build(clip_config(), qformer_config(encoder_hidden_size=20)),
    "eva-content-only": lambda: build(eva_config(), None),
    "eva-context-only": lambda: build(eva_config(), qformer_config(), use_content=False),
}


@pytest.fixture(params=sorted(KINDS))
def any_model(request):
    return KINDS[request.param]()


@pytest.fixture(scope="session")
def llama_vid_kinds():
    """Builders of tiny random LLaMA-VIDs by kind, for tests that build one once."""
    return KINDS


@pytest.fixture
def model():
    return KINDS["eva-qformer"]()


@pytest.fixture
def bert_model():
    return KINDS["eva-bert"]()


def pad(rows, left):
    width = max(len(row) for row in rows)
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    return ids, mask


class Mixed:
    """Rows: an image with all patches, a video, text only, a video asked twice beside an image."""

    showings = ([(0, 1, 0, 0)], [(1, 3, 1, 1)], [], [(1, 3, 2, 2), (0, 1, 3, 1), (1, 3, 3, 2)])
    prompts = ([5, 6, 7], [8, 9, 10, 11, 12], [5, 9], [30, 31, 32, 33])

    def __init__(self, config):
        generator = torch.Generator().manual_seed(1)
        self.pixel_values = torch.randn(4, 3, 28, 28, generator=generator)
        self.prompt_ids, self.prompt_mask = pad(self.prompts, left=False)
        self.rows = []
        for index, showings in enumerate(self.showings):
            row = [1, 3 + index]
            for _, count, _, grid in showings:
                row += [VISUAL_ID] * (count * config.tokens_per_frame(grid)) + [10 + index, 20]
            self.rows.append([*row, 40 + index, 2])

    def batch(self, rows=(0, 1, 2, 3), left=False):
        ids, mask = pad([self.rows[row] for row in rows], left)
        shown = [showing for row in rows for showing in self.showings[row]]
        batch = {"input_ids": ids, "attention_mask": mask}
        if shown:
            batch |= {
                "pixel_values": self.pixel_values,
                "visual_spans": torch.tensor([showing[:3] for showing in shown]),
                "content_grids": torch.tensor([showing[3] for showing in shown]),
                "prompt_input_ids": self.prompt_ids,
                "prompt_attention_mask": self.prompt_mask,
            }
        return batch


@pytest.fixture
def mixed():
    return Mixed


@pytest.fixture
def tiny():
    """Builders of tiny configurations and models, for tests that need one of their own."""

    class Tiny:
        pass

    tiny = Tiny()
    tiny.build, tiny.eva, tiny.clip, tiny.qformer, tiny.bert, tiny.llama = (
        build,
        eva_config,
        clip_config,
        qformer_config,
        bert_config,
        llama_config,
    )
    return tiny
