"""Tiny random language models, synthetic keys and values, and float64 references written apart from the package."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from longvid_train.kvcache.codec import KINDS, Places
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import Sample

FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def tiny_model(family="qwen2", *, heads=4, kv_heads=2, head_dim=16, layers=2, dtype=torch.float32, **settings):
    """A random model whose attention is far from uniform."""
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=48,
        hidden_size=heads * head_dim,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        **settings,
    )
    torch.manual_seed(0)
    return model_class(config).eval().to(dtype)


def rotation(head_dim=16, base=10_000.0, scaling=1.0):
    theta = 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)
    return Rotation(theta, scaling)


def places(rows, tokens, *, start=0, padding=None, kinds=False):
    """Positions from ``start``, less the padding of each row; every third token is visual."""
    index = torch.arange(start, start + tokens)
    shift = torch.zeros(rows, dtype=torch.int64) if padding is None else torch.tensor(padding)
    told = (index % 3 == 0).to(torch.uint8).expand(rows, -1) if kinds else None
    return Places(index - shift[:, None], told)


def heavy(rows, heads, tokens, head_dim, *, seed=0):
    """Numbers like keys: channels of different mean and spread, the same for every ``seed`` of the tokens."""
    channels = torch.Generator().manual_seed(0)
    mean = torch.randn(heads, 1, head_dim, generator=channels) * 2
    spread = torch.rand(heads, 1, head_dim, generator=channels) * 2 + 0.1
    noise = torch.randn(rows, heads, tokens, head_dim, generator=torch.Generator().manual_seed(seed + 1))
    return mean + spread * noise


def sample_of(x, where):
    """All tokens of ``x (1, H, T, D)`` as a calibration sample."""
    vectors = x[0].transpose(0, 1).contiguous()
    kinds = torch.zeros(len(vectors), dtype=torch.uint8) if where.kinds is None else where.kinds[0]
    low, high = (torch.full((KINDS, *vectors.shape[1:]), sign * torch.inf) for sign in (1, -1))
    for kind in range(KINDS):
        if (kinds == kind).any():
            low[kind], high[kind] = vectors[kinds == kind].amin(0), vectors[kinds == kind].amax(0)
    return Sample(
        name="layer 0 keys",
        vectors=vectors,
        positions=where.positions[0],
        kinds=kinds,
        low=low,
        high=high,
        weights=torch.ones(vectors.shape[1:], dtype=torch.float64),
    )


def rotate_numpy(x, positions, theta, scaling=1.0):
    """``scaling R(p) x`` for ``x (B, H, T, D)`` in numpy float64, angles rounded to float32 as models do."""
    angles = (positions.numpy().astype(np.float32)[:, None, :, None] * theta.numpy()).astype(np.float64)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(np.asarray(x, dtype=np.float64), 2, axis=-1)
    return scaling * np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@pytest.fixture(scope="session")
def shared_kv():
    """Everything above in one place."""
    return SimpleNamespace(
        model=tiny_model,
        rotation=rotation,
        places=places,
        heavy=heavy,
        sample=sample_of,
        rotate=rotate_numpy,
    )


@pytest.fixture
def kv(shared_kv):
    """The same under a shorter name."""
    return shared_kv
