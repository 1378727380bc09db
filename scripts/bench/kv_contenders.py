"""The caches that `kv_schemes` compares, behind one way to build, fill, attend and weigh them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, HQQQuantizedLayer, QuantizedLayer, QuantoQuantizedLayer

from longvid_train.kvcache.attention import attending_on_codes
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.layer import QuantizedLayer as CodedLayer
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.statistics import Statistics
from scripts.bench.kv_kivi import KiviLayer

FULL = "full"
PEER_GROUP = 64


@dataclass(frozen=True, eq=False)
class Contender:
    """One row of the tables.

    Attributes:
        name: of the row.
        build: an empty cache.
        on_codes: whether attention reads the cache's codes, rather than getting everything decoded.
    """

    name: str
    build: Callable[[], Cache]
    on_codes: bool

    def using(self, model: Any) -> AbstractContextManager[None]:
        """The block in which ``model`` runs with this cache."""
        return attending_on_codes(model) if self.on_codes else nullcontext()


@dataclass(frozen=True)
class Weight:
    """Bytes of a filled cache.

    Attributes:
        bits: of a coded number, metadata included; of any number where nothing is coded.
        total: bytes of everything, static parameters and windows included.
    """

    bits: float
    total: int


def contenders(statistics: Statistics, rotation: Rotation, recent: int) -> tuple[list[Contender], dict[str, str]]:
    """Everything that runs here, and why the others do not.

    Args:
        statistics: of the calibration set, for the static schemes.
        rotation: of the model.
        recent: newest tokens that every cache keeps as they are.
    """
    layers = statistics.shape.layers
    found = [Contender(FULL, lambda: Cache(layers=[DynamicLayer() for _ in range(layers)]), on_codes=False)]
    found += [_ours(name, statistics, rotation, recent) for name in PRESETS]
    found.append(Contender("kivi reference", lambda: Cache(layers=_kivi_layers(layers, recent)), on_codes=False))
    missing: dict[str, str] = {}
    for name, build in _peer_layers(recent).items():
        try:
            build().update(*(torch.zeros(1, statistics.shape.heads, 64, statistics.shape.head_dim) for _ in range(2)))
        except ImportError as error:
            missing[name] = " ".join(str(error).split())[:160]
            continue
        found.append(Contender(name, _peer_cache(build, layers), on_codes=False))
    return found, missing


def attend(layer: Any, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One step: a layer takes one token ``(1, H, 1, D)`` and answers its query ``(1, Hq, 1, D)``."""
    seen_keys, seen_values = layer.update(keys, values)
    if isinstance(layer, CodedLayer):
        output = layer.attend(query, None, query.shape[-1] ** -0.5)
        layer.settle()
        return output
    return torch.nn.functional.scaled_dot_product_attention(query, seen_keys, seen_values, enable_gqa=True)


def prefill(layer: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Give a layer the prompt."""
    layer.update(keys, values)
    if isinstance(layer, CodedLayer):
        layer.settle()


def weigh(cache: Cache) -> Weight:
    """Count what is allocated."""
    if isinstance(cache, QuantizedKVCache):
        used = cache.used_bytes()
        return Weight(used.bits_per_number, used.total)
    parts = [_layer_parts(layer) for layer in cache.layers]
    coded, numbers, exact = (sum(column) for column in zip(*parts, strict=True))
    return Weight(8 * coded / numbers, coded + exact)


def _ours(name: str, statistics: Statistics, rotation: Rotation, recent: int) -> Contender:
    policy = replace(PRESETS[name], recent_tokens=recent)
    quantizer = fit_quantizer(policy, statistics, rotation)
    return Contender("ours, full" if name == FULL else name, lambda: QuantizedKVCache(quantizer), on_codes=True)


def _kivi_layers(layers: int, recent: int) -> list[KiviLayer]:
    return [KiviLayer(residual=recent) for _ in range(layers)]


def _peer_layers(recent: int) -> Mapping[str, Callable[[], QuantizedLayer]]:
    """transformers' quantized layers at 2 bits, axes as by default: HQQ's other axis packs groups in fours only."""
    shared = {"nbits": 2, "q_group_size": PEER_GROUP, "residual_length": recent}
    return {
        "transformers quanto": lambda: QuantoQuantizedLayer(**shared),
        "transformers hqq": lambda: HQQQuantizedLayer(**shared),
    }


def _peer_cache(build: Callable[[], QuantizedLayer], layers: int) -> Callable[[], Cache]:
    return lambda: Cache(layers=[build() for _ in range(layers)])


def _layer_parts(layer: Any) -> tuple[int, int, int]:
    """Bytes of what is coded, numbers in it, and bytes of the rest; a layer that codes nothing counts as coded."""
    if isinstance(layer, KiviLayer):
        return *layer.coded_bytes(), layer.exact_bytes()
    if isinstance(layer, QuantizedLayer):
        coded = inner_bytes(layer._quantized_keys) + inner_bytes(layer._quantized_values)
        numbers = 2 * layer._dequantize(layer._quantized_keys).numel()
        return coded, numbers, layer.keys.nbytes + layer.values.nbytes
    return layer.keys.nbytes + layer.values.nbytes, layer.keys.numel() + layer.values.numel(), 0


def inner_bytes(stored: object) -> int:
    """Bytes of all tensors inside a peer's quantized tensor."""
    if isinstance(stored, torch.Tensor) and hasattr(stored, "__tensor_flatten__"):
        return sum(inner_bytes(getattr(stored, name)) for name in stored.__tensor_flatten__()[0])
    if isinstance(stored, torch.Tensor):
        return stored.nbytes
    if isinstance(stored, dict):
        return sum(inner_bytes(value) for value in stored.values())
    if isinstance(stored, (list, tuple)):
        return sum(map(inner_bytes, stored))
    return 0
