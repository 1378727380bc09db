"""Tiny random language models with rotary embeddings, and float64 references written apart from the package."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from longvid_train.rope.scale import TokenCounts, TrainedWindows

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}


def tiny_model(family="llama", *, base=10_000.0, window=64, head_dim=16, **rope):
    """A random model of two layers; ``rope`` is merged into its rope_parameters."""
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=40,
        hidden_size=2 * head_dim,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=window,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": base} | rope,
    )
    torch.manual_seed(0)
    return model_class(config).eval()


def theta(base, dim, divisor=1.0):
    """``b^(-2i/d) / divisor`` in Python floats."""
    return [base ** (-2 * i / dim) / divisor for i in range(dim // 2)]


def paper_yarn(base, dim, window, scale, alpha=1.0, beta=32.0, divisor=1.0):
    """Eq. 5 of the visual context window paper, one frequency at a time."""
    extended = []
    for one in theta(base, dim, divisor):
        turns = window / (2 * math.pi / one)
        if turns > beta:
            gamma = 1.0
        elif turns < alpha:
            gamma = 0.0
        else:
            gamma = (turns - alpha) / (beta - alpha)
        extended.append((gamma + (1 - gamma) / scale) * one)
    return extended


def ids(length=24, seed=3):
    return torch.randint(0, 40, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def reference():
    """Models, references and lengths, in one place."""
    return SimpleNamespace(
        model=tiny_model,
        theta=theta,
        paper_yarn=paper_yarn,
        ids=ids,
        families=sorted(FAMILIES),
        trained=TrainedWindows(visual=16, language=64),
        counts=lambda visual, total=None: TokenCounts(visual=visual, total=total if total is not None else visual + 8),
    )
