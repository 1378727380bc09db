"""Compare KV-cache schemes on synthetic keys and values: error of attention's output at measured bits, and time a step.

    python -m scripts.bench.kv_schemes --out bench/kv --tokens 2048 8192

One layer with a grouped-query head layout. Keys are made as models make them: a mean vector for every head (the bias of
``k_proj``), channels of lognormal spread, a few outlier channels, tokens of different size, then the rotary embedding.
Queries look at a handful of tokens. Static schemes are calibrated on other tokens of the same channels, 1024 of them
kept; dynamic ones need none. Every scheme keeps 4 sink and 128 recent tokens.

    bits    of a coded number, from allocated bytes, metadata included
    error   |output - exact output| / |exact output| of one decoding step, mean over rows, heads and ``--queries`` steps
    ms      CPU milliseconds of one decoding step on one thread, median; ``sdpa`` is torch's attention on float32

``kivi`` rows are KIVI's ranges (keys a channel, values a token) in this cache; where ``optimum-quanto`` or ``hqq`` are
installed, transformers' own quantized layers are measured beside them, in groups of 64 with a residual of 128.
"""

import argparse
import platform
import statistics as numbers
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers.cache_utils import HQQQuantizedLayer, QuantoQuantizedLayer
from transformers.cache_utils import QuantizedLayer as QuantizedCacheLayer
from transformers.utils import is_hqq_available, is_optimum_quanto_available

from longvid_train.files import write_json, write_text
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.layer import QuantizedLayer
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import CacheShape
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.statistics import Statistics

HEADS, GROUP, HEAD_DIM = 4, 4, 128
SHAPE = CacheShape(layers=1, heads=HEADS, head_dim=HEAD_DIM)
CALIBRATION_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    scheme: str
    tokens: int
    bits: float
    error: float
    ms: float


@dataclass(frozen=True, eq=False)
class World:
    """Channels that calibration and test share."""

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


def make_world() -> World:
    draw = torch.Generator().manual_seed(0)

    def channels(scale: float) -> torch.Tensor:
        return torch.exp(scale * torch.randn(1, HEADS, 1, HEAD_DIM, generator=draw))

    mean = torch.randn(1, HEADS, 1, HEAD_DIM, generator=draw)
    mean[..., torch.randint(0, HEAD_DIM, (4,), generator=draw)] *= 8
    theta = 1.0 / 1e6 ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
    value_mean = 0.2 * torch.randn(1, HEADS, 1, HEAD_DIM, generator=draw)
    return World(mean, channels(0.5), value_mean, channels(0.25), Rotation(theta))


def calibrate(world: World) -> Statistics:
    statistics = Statistics(SHAPE)
    keys, values = world.tokens(CALIBRATION_TOKENS, seed=1)
    statistics.begin([0], torch.ones(1, CALIBRATION_TOKENS))
    statistics.observe(0, world.queries(keys, CALIBRATION_TOKENS, seed=2), keys, values)
    return statistics


def exact_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    repeated = (x.double().repeat_interleave(GROUP, dim=1) for x in (keys, values))
    return torch.nn.functional.scaled_dot_product_attention(query.double(), *repeated)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float(((found.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).mean())


def milliseconds(step: Callable[[], object], repeats: int) -> float:
    step()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        taken.append(1000 * (time.process_time() - start))
    return numbers.median(taken)


def measure(
    name: str, policy: CachePolicy, world: World, statistics: Statistics, tokens: int, options: argparse.Namespace
) -> Row:
    quantizer = fit_quantizer(policy, statistics, world.rotation)
    cache = QuantizedKVCache(quantizer)
    layer = cache.layers[0]
    assert isinstance(layer, QuantizedLayer)
    keys, values = world.tokens(tokens, seed=3)
    layer.update(keys[:, :, :-1], values[:, :, :-1])
    layer.settle()
    layer.update(keys[:, :, -1:], values[:, :, -1:])
    queries = world.queries(keys, options.queries, seed=4)
    scale = HEAD_DIM**-0.5
    steps = [layer.attend(query, None, scale) for query in queries.split(1, dim=2)]
    error = relative_error(torch.cat(steps, dim=2), exact_attention(queries, keys, values))
    ms = milliseconds(lambda: layer.attend(queries[:, :, :1], None, scale), options.repeats)
    return Row(scheme=name, tokens=tokens, bits=cache.used_bytes().bits_per_number, error=error, ms=ms)


def measure_sdpa(world: World, tokens: int, options: argparse.Namespace) -> Row:
    keys, values = world.tokens(tokens, seed=3)
    query = world.queries(keys, 1, seed=4)

    def step() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    error = relative_error(step(), exact_attention(query, keys, values))
    return Row(scheme="sdpa", tokens=tokens, bits=32.0, error=error, ms=milliseconds(step, options.repeats))


def peer_layers() -> dict[str, Callable[[], QuantizedCacheLayer]]:
    """transformers' quantized layers that can be built here."""
    found: dict[str, Callable[[], QuantizedCacheLayer]] = {}
    if is_optimum_quanto_available():
        found["transformers quanto"] = lambda: QuantoQuantizedLayer(nbits=2, q_group_size=64, residual_length=128)
    if is_hqq_available():
        found["transformers hqq"] = lambda: HQQQuantizedLayer(
            nbits=2, axis_key=1, axis_value=1, q_group_size=64, residual_length=128
        )
    return found


def measure_peer(
    name: str, build: Callable[[], QuantizedCacheLayer], world: World, tokens: int, options: argparse.Namespace
) -> Row:
    """What a transformers layer hands to attention: everything, dequantized at every step."""
    layer = build()
    keys, values = world.tokens(tokens, seed=3)
    layer.update(keys[:, :, :-1], values[:, :, :-1])
    bits = 8 * (inner_bytes(layer._quantized_keys) + inner_bytes(layer._quantized_values))
    queries = world.queries(keys, options.queries, seed=4)

    def step() -> torch.Tensor:
        seen = layer.update(keys[:, :, -1:], values[:, :, -1:])
        return torch.nn.functional.scaled_dot_product_attention(queries, *seen, enable_gqa=True)

    error = relative_error(step(), exact_attention(queries, keys, values))
    queries = queries[:, :, :1]
    numbers_coded = 2 * keys[:, :, :-1].numel()
    return Row(
        scheme=name, tokens=tokens, bits=bits / numbers_coded, error=error, ms=milliseconds(step, options.repeats)
    )


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


def table(rows: list[Row]) -> str:
    lines = ["| scheme | tokens | bits | error | ms |", "|---|---|---|---|---|"]
    lines += [f"| {row.scheme} | {row.tokens} | {row.bits:.3f} | {row.error:.3f} | {row.ms:.1f} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = make_world()
    statistics = calibrate(world)
    rows = []
    for tokens in options.tokens:
        rows.append(measure_sdpa(world, tokens, options))
        rows += [measure(name, policy, world, statistics, tokens, options) for name, policy in PRESETS.items()]
        rows += [measure_peer(name, build, world, tokens, options) for name, build in peer_layers().items()]
    versions = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.processor()}
    write_json(options.out / "kv_schemes.json", {"versions": versions, "rows": [asdict(row) for row in rows]})
    write_text(options.out / "kv_schemes.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
