"""Keys, values and queries to compare caches on: drawn, or captured from a model as it reads a video.

``H`` key-value heads, ``Hq`` query heads, ``T`` tokens, ``n`` steps at the end of them, ``D`` head dim.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longvid_train.kvcache.quantizer import CacheShape
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.statistics import Statistics

HEADS, GROUP, HEAD_DIM = 4, 4, 128
SHAPE = CacheShape(layers=1, heads=HEADS, head_dim=HEAD_DIM)
CALIBRATION_TOKENS = 4096
RECORDER_NAME = "longvid_recorded"


@dataclass(frozen=True, eq=False)
class LayerTensors:
    """One layer's part in a sequence.

    Attributes:
        keys: ``(1, H, T, D)``, rotated.
        values: ``(1, H, T, D)``.
        queries: ``(1, Hq, n, D)`` of the last ``n`` tokens, rotated.
    """

    keys: torch.Tensor
    values: torch.Tensor
    queries: torch.Tensor


@dataclass(frozen=True, eq=False)
class World:
    """Channels that calibration and test share: a mean for every head (as the bias of ``k_proj``), lognormal spreads,
    outlier channels, tokens of different size."""

    mean: torch.Tensor
    spread: torch.Tensor
    value_mean: torch.Tensor
    value_spread: torch.Tensor
    rotation: Rotation

    def tokens(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and values, each ``(1, H, T, D)``."""
        draw = torch.Generator().manual_seed(seed)
        noise, value_noise = (torch.randn(1, HEADS, count, HEAD_DIM, generator=draw) for _ in range(2))
        size = torch.exp(0.3 * torch.randn(1, HEADS, count, 1, generator=draw))
        keys = self.mean + self.spread * size * noise
        values = self.value_mean + self.value_spread * size * value_noise
        return self.rotation.apply(keys, torch.arange(count)[None]), values

    def queries(self, keys: torch.Tensor, count: int, seed: int) -> torch.Tensor:
        """``(1, Hq, count, D)``: each looks at 8 tokens, at the scale of trained attention."""
        draw = torch.Generator().manual_seed(seed)
        chosen = torch.randint(0, keys.shape[2], (count, 8), generator=draw)
        centred = keys - keys.mean(2, keepdim=True)
        aimed = centred[:, :, chosen].mean(3).repeat_interleave(GROUP, dim=1)
        aimed = aimed / aimed.std() + 0.5 * torch.randn(aimed.shape, generator=draw)
        return aimed * 1.5

    def sequence(self, tokens: int, steps: int) -> LayerTensors:
        """Tokens of the test and the queries of the last ``steps``."""
        keys, values = self.tokens(tokens, seed=3)
        return LayerTensors(keys, values, self.queries(keys[:, :, : tokens - steps], steps, seed=4))

    def statistics(self) -> Statistics:
        """Of other tokens of the same channels."""
        made = Statistics(SHAPE)
        keys, values = self.tokens(CALIBRATION_TOKENS, seed=1)
        made.begin([0], torch.ones(1, CALIBRATION_TOKENS))
        made.observe(0, self.queries(keys, CALIBRATION_TOKENS, seed=2), keys, values)
        return made


def make_world() -> World:
    """The same always."""
    draw = torch.Generator().manual_seed(0)

    def channels(scale: float) -> torch.Tensor:
        return torch.exp(scale * torch.randn(1, HEADS, 1, HEAD_DIM, generator=draw))

    mean = torch.randn(1, HEADS, 1, HEAD_DIM, generator=draw)
    mean[..., torch.randint(0, HEAD_DIM, (4,), generator=draw)] *= 8
    theta = 1.0 / 1e6 ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    value_mean = 0.2 * torch.randn(1, HEADS, 1, HEAD_DIM, generator=draw)
    return World(mean, channels(0.5), value_mean, channels(0.25), Rotation(theta))


@contextmanager
def recording(model: Any, steps: int) -> Iterator[list[LayerTensors]]:
    """Collect what every layer attends with in the one forward pass of the body, in order of the layers."""
    decoder, found = model.get_decoder(), []

    def record(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        found.append(LayerTensors(key.float(), value.float(), query[:, :, -steps:].float()))
        output, _ = sdpa_attention_forward(module, query, key, value, *args, **kwargs)
        return output, None

    before = decoder.config._attn_implementation
    AttentionInterface.register(RECORDER_NAME, record)
    AttentionMaskInterface.register(RECORDER_NAME, sdpa_mask)
    decoder.set_attn_implementation(RECORDER_NAME)
    try:
        yield found
    finally:
        decoder.set_attn_implementation(before)


def exact_attention(tensors: LayerTensors) -> torch.Tensor:
    """``(1, Hq, n, D)`` float64: each of the last ``n`` queries over the tokens up to its own."""
    group = tensors.queries.shape[1] // tensors.keys.shape[1]
    tokens, steps = tensors.keys.shape[2], tensors.queries.shape[2]
    keys, values = (x.double().repeat_interleave(group, dim=1) for x in (tensors.keys, tensors.values))
    own = torch.arange(tokens - steps, tokens)
    visible = torch.arange(tokens) <= own[:, None]
    return torch.nn.functional.scaled_dot_product_attention(tensors.queries.double(), keys, values, attn_mask=visible)
