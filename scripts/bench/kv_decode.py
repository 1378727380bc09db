"""Decoding on codes on a GPU: the kernels against the fastest bf16 attention and the copy bandwidth of the same run.

    python -m scripts.bench.kv_decode --out bench/decode

One layer of Vicuna-7B (32 heads of 128) and of Qwen2-7B (28 query heads, 4 of keys), 8K, 50,176 and 128K tokens, batch
1 and 8. Codes are random bytes and scales are random: time does not depend on them. Each number is the median of
``triton.testing.do_bench`` with the L2 cache cleared in between.

    copy      GB/s that ``Tensor.copy_`` of 1 GiB moves, reads and writes counted
    bf16 ms   the fastest of torch's attention backends (flash, cuDNN, memory-efficient) and flex attention, named;
              ``packed`` gives the queries of a group as rows of one product, so that keys are read once
    codes ms  both kernels, static scales included; ``bytes`` are codes and metadata; ``%`` is bytes / time / copy
    layer ms  `QuantizedLayer.attend`: the kernels, sinks, recent and new tokens, and what joins them

Without a CUDA device it says so and exits with status 2.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from longvid_train.files import write_json, write_text
from longvid_train.kvcache.kernels.choice import page_decoder
from longvid_train.kvcache.layer import LayerSettings, QuantizedLayer
from longvid_train.kvcache.pages import PAGE_TOKENS, Page
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import CacheShape
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.statistics import Statistics

HEAD_DIM = 128
MODELS = {"vicuna-7b": (32, 32), "qwen2-7b": (28, 4)}
TOKENS = (8192, 50_176, 131_072)
BATCHES = (1, 8)
SCHEMES = ("static8", "static4", "static3", "static2", "bias2", "lloyd2", "k4v2", "kivi_g32")
COPY_BYTES = 2**30
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
OUT_OF_MEMORY = torch.cuda.OutOfMemoryError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; times in milliseconds, NaN where the device has no room."""

    model: str
    batch: int
    tokens: int
    scheme: str
    bf16_by: str
    bf16_ms: float
    bf16_percent: float
    codes_ms: float
    bytes: int
    percent: float
    layer_ms: float


def milliseconds(step: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(statistics.median(do_bench(step, warmup=25, rep=200, return_mode="all")))


def copy_gb_per_s() -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / milliseconds(lambda: target.copy_(source)) / 1e6


def fastest_bf16(heads: int, kv_heads: int, batch: int, tokens: int) -> tuple[str, float]:
    """The name and time of the fastest attention of one query a row; each backend that runs here is tried."""
    query = torch.randn(batch, heads, 1, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    keys, values = (
        torch.randn(batch, kv_heads, tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    found: list[tuple[float, str]] = []
    packed = query.view(batch, kv_heads, heads // kv_heads, HEAD_DIM)
    for backend in BACKENDS:
        for name, rows in {"": query, " packed": packed}.items():
            grouped = rows.shape[1] != kv_heads

            def step(rows: torch.Tensor = rows, grouped: bool = grouped) -> torch.Tensor:
                return torch.nn.functional.scaled_dot_product_attention(rows, keys, values, enable_gqa=grouped)

            try:
                with sdpa_kernel(backend):
                    found.append((milliseconds(step), backend.name.lower() + name))
            except RuntimeError as error:
                print(
                    f"kv_decode: {backend.name}{name} does not run here: {str(error).splitlines()[0]}", file=sys.stderr
                )
    found.append((_flex_ms(query, keys, values), "flex"))
    ms, name = min(found)
    return name, ms


def _flex_ms(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> float:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return milliseconds(lambda: compiled(query, keys, values, enable_gqa=query.shape[1] != keys.shape[1]))


def coded_layer(scheme: str, kv_heads: int, batch: int, tokens: int) -> QuantizedLayer:
    """A layer of ``tokens`` tokens: pages of random codes behind one real block."""
    policy = PRESETS[scheme]
    shape, rotation = CacheShape(layers=1, heads=kv_heads, head_dim=HEAD_DIM), _rotation()
    seen = Statistics(shape, sample_tokens=256)
    seen.begin([0], torch.ones(1, 512))
    draw = torch.Generator().manual_seed(0)
    made = [torch.randn(1, kv_heads, 512, HEAD_DIM, generator=draw) for _ in range(3)]
    seen.observe(0, *made)
    fitted = [
        one.fit(sample, separate=False, rotation=rotation)
        for one, sample in zip((policy.keys, policy.values), seen.layer_samples(0), strict=True)
    ]
    settings = LayerSettings(
        sink_tokens=policy.sink_tokens,
        recent_tokens=policy.recent_tokens,
        block_tokens=policy.block_tokens,
        needs_kinds=False,
    )
    layer = QuantizedLayer(
        policy.keys.codec(fitted[0], rotation=rotation), policy.values.codec(fitted[1], rotation=None), settings
    )
    first = PAGE_TOKENS + policy.recent_tokens
    keys, values = (
        torch.randn(batch, kv_heads, first, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    layer.update(keys, values)
    layer.settle()
    model_page = layer.pages[0]
    assert model_page.length == PAGE_TOKENS
    for _ in range((tokens - first) // PAGE_TOKENS):
        layer.pages.append(model_page.map(_shuffled))
    layer.update(keys[:, :, :1], values[:, :, :1])
    return layer


def _shuffled(tensor: torch.Tensor) -> torch.Tensor:
    """Other codes of the same size; ranges and gains stay as they are, in memory of their own."""
    return torch.randint_like(tensor, 256) if tensor.dtype == torch.uint8 else tensor.clone()


def _rotation() -> Rotation:
    return Rotation(1.0 / 1e6 ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM))


def page_bytes(pages: list[Page]) -> int:
    return sum(tensor.nbytes for page in pages for tensor in page.tensors())


def measure(model: str, batch: int, tokens: int, scheme: str, bf16: tuple[str, float], copy: float) -> Row:
    heads, kv_heads = MODELS[model]
    plain_bytes = 2 * 2 * batch * kv_heads * tokens * HEAD_DIM
    layer = coded_layer(scheme, kv_heads, batch, tokens)
    decoder = page_decoder(
        layer._key_codec,
        layer._value_codec,
        heads=kv_heads,
        head_dim=HEAD_DIM,
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
        decoding="triton",
    )
    assert decoder is not None
    query = torch.randn(batch, heads, 1, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    rows = query.float().view(batch, kv_heads, heads // kv_heads, HEAD_DIM) * HEAD_DIM**-0.5
    zeros = torch.zeros(batch, dtype=torch.int64, device="cuda")
    codes_ms = milliseconds(
        lambda: decoder.attend(
            rows, layer.pages, queries=1, mask=None, first_position=zeros, padding=zeros, sink_tokens=4
        )
    )
    moved = page_bytes(layer.pages)
    return Row(
        model=model,
        batch=batch,
        tokens=tokens,
        scheme=scheme,
        bf16_by=bf16[0],
        bf16_ms=bf16[1],
        bf16_percent=100 * plain_bytes / bf16[1] / 1e6 / copy,
        codes_ms=codes_ms,
        bytes=moved,
        percent=100 * moved / codes_ms / 1e6 / copy,
        layer_ms=milliseconds(lambda: layer.attend(query, None, HEAD_DIM**-0.5)),
    )


def table(rows: list[Row], copy: float) -> str:
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; copy {copy:,.0f} GB/s",
        "",
        "| model | batch | tokens | bf16 ms (by, % of copy) | scheme | codes ms | % of copy | faster | layer ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {row.batch} | {row.tokens} | {row.bf16_ms:.3f} ({row.bf16_by}, {row.bf16_percent:.0f}) | "
        f"{row.scheme} | {row.codes_ms:.3f} | {row.percent:.0f} | {row.bf16_ms / row.codes_ms:.1f}x | "
        f"{row.layer_ms:.3f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("kv_decode: needs a CUDA device, and there is none", file=sys.stderr)
        sys.exit(2)
    if find_spec("triton") is None:
        print("kv_decode: needs Triton (pip install triton)", file=sys.stderr)
        sys.exit(2)
    copy, rows = copy_gb_per_s(), []
    for model in options.models:
        for batch in options.batches:
            for tokens in options.tokens:
                try:
                    bf16 = fastest_bf16(*MODELS[model], batch, tokens)
                except OUT_OF_MEMORY:
                    bf16 = "no room", float("nan")
                torch.cuda.empty_cache()
                for scheme in options.schemes:
                    rows.append(measure(model, batch, tokens, scheme, bf16, copy))
                    print(table(rows[-1:], copy).splitlines()[-1], flush=True)
    device = {"name": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_gb_per_s": copy}
    write_json(options.out / "kv_decode.json", {"device": device, "rows": [asdict(row) for row in rows]})
    write_text(options.out / "kv_decode.md", table(rows, copy))


if __name__ == "__main__":
    main()
