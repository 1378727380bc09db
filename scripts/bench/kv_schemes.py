"""Compare KV caches side by side: ours by preset, none, transformers' quanto and HQQ, KIVI as published, INTP.

    python -m scripts.bench.kv_schemes --out bench/kv
    python -m scripts.bench.kv_schemes --out bench/kv --tokens 2048 --models longvid_train/assets/nano_onevision

On synthetic tensors (one layer, 16 query heads on 4 key-value heads of 128; `kv_tensors`) and on those that trained
nano models make of rendered videos (`kv_models`: 8 frames a second, 64 s at most). ``--models`` takes the folder of any
model that `longvid ask` knows. Static schemes are calibrated on other tokens, of 2K-token clips
that are not evaluated. All caches keep as many newest tokens as they are: 128, or 32 for needles, whose prompts are
short.

    bits       of a coded number, from allocated bytes, metadata included
    B/token    all allocated bytes over all tokens, windows and static parameters included
    error      |output - exact output| / |exact output| of attention, mean over layers, heads and the last steps
    KL, top-1  of the logits against a full-precision cache, over ``--steps`` teacher-forced steps
    needle     share of exact answers about events in the first, middle and last third of videos in the model's window
    ms, x      CPU milliseconds of attention of one step and one layer, median, one thread; times those of ``full``

``full`` is transformers' DynamicCache with SDPA on float32. ``kivi reference`` keeps its windows as the public code
does (`kv_kivi`), ``kivi_g32`` is the same coding in this cache, with sinks. Where ``optimum-quanto`` or ``hqq`` are not
installed, their rows say so. What is forced is the model's own continuation. Tables grow part by part, so an
interrupted run leaves those it finished.
"""

import argparse
import platform
import statistics as numbers
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from longvid_train.console import exit_status
from longvid_train.files import write_json, write_text
from longvid_train.generate.chat import VideoChat
from longvid_train.kvcache.attention import rotation_of
from scripts.bench import kv_models
from scripts.bench.kv_contenders import FULL, Contender, attend, contenders, prefill, weigh
from scripts.bench.kv_models import CALIBRATION_SEED, TEST_SEED, Videos
from scripts.bench.kv_tensors import LayerTensors, exact_attention, make_world

RECENT = 128
NEEDLE_FRAMES, NEEDLE_DURATION_S, NEEDLE_RECENT = 32, 8.0, 32
CALIBRATION_CLIPS, CALIBRATION_TOKENS = 3, 2048
ASSETS = Path("longvid_train/assets")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table; ``None`` is not measured there."""

    part: str
    scheme: str
    tokens: int
    bits: float
    bytes_a_token: float
    error: float | None = None
    divergence: float | None = None
    agreement: float | None = None
    needles: dict[str, float] | None = None
    ms: float | None = None
    ratio: float | None = None


class Results:
    """Rows on disk, written after every part."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        self._rows: list[Row] = []
        self._missing: dict[str, str] = {}

    def add(self, rows: Sequence[Row], missing: dict[str, str]) -> None:
        """Keep the rows of a part, with ratios to its ``full``, and print its table."""
        whole = next(row.ms for row in rows if row.scheme == FULL)
        told = [row if not (row.ms and whole) else _with_ratio(row, row.ms / whole) for row in rows]
        self._rows += told
        self._missing |= missing
        write_json(
            self._folder / "kv_schemes.json",
            {"settings": self._settings, "not_run": self._missing, "rows": [asdict(row) for row in self._rows]},
        )
        parts = list(dict.fromkeys((row.part, row.tokens) for row in self._rows))
        tables = [table([row for row in self._rows if (row.part, row.tokens) == part], self._missing) for part in parts]
        write_text(self._folder / "kv_schemes.md", "\n".join(tables))
        print(table(told, missing), flush=True)


def streamed(layer: Any, tensors: LayerTensors) -> tuple[torch.Tensor, list[float]]:
    """Fill a layer with all but the last tokens, then step by step: results ``(1, Hq, n, D)`` and milliseconds."""
    steps = tensors.queries.shape[2]
    start = tensors.keys.shape[2] - steps
    prefill(layer, tensors.keys[:, :, :start], tensors.values[:, :, :start])
    outputs, taken = [], []
    for step in range(steps):
        here = slice(start + step, start + step + 1)
        began = time.process_time()
        outputs.append(
            attend(layer, tensors.queries[:, :, step : step + 1], tensors.keys[:, :, here], tensors.values[:, :, here])
        )
        taken.append(1000 * (time.process_time() - began))
    return torch.cat(outputs, dim=2), taken


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean over heads and steps."""
    return float(((found.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).mean())


def attention_row(part: str, contender: Contender, layers: Sequence[LayerTensors]) -> Row:
    """Error, bytes and time of a cache on given tensors."""
    cache = contender.build()
    errors, times = [], []
    for layer, tensors in zip(cache.layers, layers, strict=True):
        found, taken = streamed(layer, tensors)
        errors.append(relative_error(found, exact_attention(tensors)))
        times += taken
    tokens = layers[0].keys.shape[2]
    weight = weigh(cache)
    return Row(
        part=part,
        scheme=contender.name,
        tokens=tokens,
        bits=weight.bits,
        bytes_a_token=weight.total / tokens,
        error=numbers.mean(errors),
        ms=numbers.median(times),
    )


def synthetic_rows(tokens: int, steps: int) -> tuple[list[Row], dict[str, str]]:
    """Every cache on drawn tensors."""
    world = make_world()
    found, missing = contenders(world.statistics(), world.rotation, RECENT)
    tensors = world.sequence(tokens, steps)
    return [attention_row("synthetic", contender, [tensors]) for contender in found], missing


@torch.no_grad()
def captured_rows(
    chat: VideoChat, name: str, tokens: int, options: argparse.Namespace
) -> tuple[list[Row], dict[str, str]]:
    """Every cache on a long video: errors on captured tensors, and logits of teacher-forced steps."""
    read = kv_models.long_videos(chat, CALIBRATION_TOKENS, CALIBRATION_CLIPS, CALIBRATION_SEED)
    statistics = kv_models.observe(chat, kv_models.prompts_of(chat, read))
    found, missing = contenders(statistics, rotation_of(chat.model), RECENT)
    prompt = kv_models.prompts_of(chat, kv_models.long_videos(chat, tokens, 1, TEST_SEED))[0]
    forced = kv_models.continuation(chat, prompt, options.steps)
    layers = [
        LayerTensors(one.keys, one.values, one.queries[:, :, -options.error_steps :])
        for one in kv_models.captured(chat, prompt, forced)
    ]
    exact = kv_models.forced_logits(chat, prompt, forced, found[0].build())
    rows = []
    for contender in found:
        compared = kv_models.fidelity(chat, prompt, forced, exact, contender)
        row = attention_row(name, contender, layers)
        measured = {
            "tokens": tokens,
            "bits": compared.weight.bits,
            "bytes_a_token": compared.weight.total / layers[0].keys.shape[2],
            "divergence": compared.divergence,
            "agreement": compared.agreement,
        }
        rows.append(Row(**{**asdict(row), **measured}))
    return rows, missing


@torch.no_grad()
def needle_rows(chat: VideoChat, name: str, clips: int) -> tuple[list[Row], dict[str, str]]:
    """Every cache on short videos, which the model answers about."""
    read, asked = (
        kv_models.prompts_of(chat, Videos(clips, NEEDLE_FRAMES, NEEDLE_DURATION_S, seed))
        for seed in (CALIBRATION_SEED, TEST_SEED)
    )
    found, missing = contenders(kv_models.observe(chat, read), rotation_of(chat.model), NEEDLE_RECENT)
    tokens = asked[0].ids.shape[1]
    rows = []
    for contender in found:
        cache = contender.build()
        with contender.using(chat.model):
            kv_models.forced_logits(chat, asked[0], asked[0].ids[:, :2], cache)
        weight = weigh(cache)
        rows.append(
            Row(
                part=f"{name}, {len(asked)} needles",
                scheme=contender.name,
                tokens=tokens,
                bits=weight.bits,
                bytes_a_token=weight.total / tokens,
                needles=kv_models.needle_scores(chat, asked, contender),
            )
        )
    return rows, missing


def table(rows: Sequence[Row], missing: dict[str, str]) -> str:
    """Markdown of one part, by bits."""
    columns = ["error", "KL", "top-1", *kv_models.DEPTHS, "all", "ms", "x"]
    lines = [[row.scheme, f"{row.bits:.2f}", f"{row.bytes_a_token:.0f}", *_cells(row)] for row in _by_bits(rows)]
    kept = [place for place in range(3 + len(columns)) if place < 3 or any(line[place] for line in lines)]
    head = ["cache", "bits", "B/token", *columns]
    lines = [head, ["---"] * len(head), *lines]
    told = ["| " + " | ".join(line[place] for place in kept) + " |" for line in lines]
    told += [f"| {name} | does not run: {reason} |" for name, reason in missing.items()]
    return "\n".join([f"{rows[0].part}, {rows[0].tokens:,} tokens", "", *told, ""])


def _by_bits(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row.bits)


def _cells(row: Row) -> list[str]:
    needles = row.needles or {}
    shares = [needles.get(place) for place in (*kv_models.DEPTHS, "all")]
    return [
        *("" if value is None else f"{value:.3f}" for value in (row.error, row.divergence)),
        *("" if value is None else f"{value:.0%}" for value in (row.agreement, *shares)),
        *("" if value is None else f"{value:.1f}" for value in (row.ms, row.ratio)),
    ]


def _with_ratio(row: Row, ratio: float) -> Row:
    return Row(**{**asdict(row), "ratio": ratio})


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[ASSETS / "nano_onevision", ASSETS / "nano_video_llava"]
    )
    parser.add_argument("--steps", type=int, default=64, help="teacher-forced steps")
    parser.add_argument("--error-steps", type=int, default=16, help="last steps whose attention is compared")
    parser.add_argument("--needle-clips", type=int, default=30, help="0 asks no needles")
    parser.add_argument("--synthetic", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(arguments)


def _loaded(folder: Path) -> tuple[VideoChat, str]:
    chat = VideoChat.load(folder, adaptation=kv_models.PLAIN, device="cpu")
    return chat, f"{folder.name} ({chat.model.config.model_type})"


def main(arguments: Sequence[str]) -> int:
    """Run all parts, the short ones first."""
    options = parse_options(arguments)
    torch.set_num_threads(1)
    settings = {name: str(value) for name, value in vars(options).items()}
    settings |= {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.processor()}
    results = Results(options.out, settings)
    loaded = [_loaded(folder) for folder in options.models]
    if options.needle_clips:
        for model in loaded:
            results.add(*needle_rows(*model, options.needle_clips))
    for tokens in options.tokens:
        if options.synthetic:
            results.add(*synthetic_rows(tokens, options.error_steps))
        for model in loaded:
            results.add(*captured_rows(*model, tokens, options))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("kv_schemes", None, main))
