"""Measure the memory and time of a question about many frames against transformers' own generate.

    python -m scripts.bench.frames_memory --out bench/
    python -m scripts.bench.frames_memory --out bench/ --device cuda --size 7b --frames 32 64 128 256 512

The model is a LLaVA-OneVision with random weights: ``nano`` (6 M parameters, 16 tokens a frame, float32) or the public
``7b`` (196 tokens a frame, bfloat16). The frames are uint8 in memory before the measured call; every curve makes pixels
of them with the same PIL processor and answers with the same number of new tokens:

    transformers  all pixels at once, then ``model.generate(pixel_values_videos=...)``
    ours          pixels and tower a chunk of frames at a time, tokens kept in main memory, prefill in chunks
    progressive   ours, showing the first of every 4 frames as trained and the others at stride 8 (paper Sec. 3.2)

``ours`` gives the tokens of ``transformers`` (a test holds that). Each number comes from a forked child of its own. On
a CPU ``peak`` is the child's high-water mark of resident memory (``VmHWM``, reset before the call) minus what was
resident before it, weights and decoded frames, and seconds are CPU seconds on one thread, which other jobs hardly
change. On CUDA ``peak`` is all device memory allocated at most, weights included, and seconds are wall-clock. Cells are
medians of the repeats; ratios are against ``transformers`` at the same number of frames.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from longvid_train.adaptation.settings import Adaptation
from longvid_train.files import write_json, write_text
from longvid_train.models.backbones import generate, streamed_tokens
from longvid_train.models.backbones.llava_onevision import LlavaOnevision
from longvid_train.models.backbones.published import published_backbone
from longvid_train.models.backbones.video import FRAME_CHUNK
from longvid_train.tokens.progressive import ProgressivePlan
from scripts.bench.loss_memory import MIB, memory_bytes

BASELINE = "transformers"
CURVES = (BASELINE, "ours", "progressive")
ADAPTATIONS = {
    "ours": Adaptation(),
    "progressive": Adaptation(plan=ProgressivePlan(group=4, high_stride=2, low_stride=8)),
}
WARM_UP_FRAMES = 2
NEW_TOKENS = 8
FRAME_SIZE = (120, 160, 3)


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one child measures."""

    curve: str
    frames: int
    size: str
    device: str


def nano_config() -> LlavaOnevisionConfig:
    """8 x 8 patches a frame, pooled to 4 x 4."""
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        image_size=112,
        patch_size=14,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=4096,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=32768,
    )
    return LlavaOnevisionConfig(vision_config=vision, text_config=text, image_token_index=4094, video_token_index=4095)


def build(size: str, device: str) -> LlavaOnevision:
    """A model with random weights, made where it runs."""
    config = nano_config() if size == "nano" else published_backbone(f"llava-onevision-{size}")
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaOnevisionForConditionalGeneration._from_config(
            config, dtype=torch.float32 if size == "nano" else torch.bfloat16
        )
    return LlavaOnevision(model.eval())


def pixels_of(frames: NDArray[np.uint8], side: int) -> torch.Tensor:
    """``(n, height, width, 3)`` uint8 -> ``(n, 3, side, side)`` float32."""
    processor = CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)
    pixels: torch.Tensor = processor(list(frames), return_tensors="pt")["pixel_values"]
    return pixels


def prompt_of(backbone: LlavaOnevision, visual_tokens: int) -> torch.Tensor:
    """Some words around the video."""
    placeholder = backbone.facts.placeholder_id
    return torch.tensor([[5, 6, 7, *[placeholder] * visual_tokens, *range(10, 30)]], device=backbone.model.device)


def answer_by_transformers(backbone: LlavaOnevision, frames: NDArray[np.uint8]) -> torch.Tensor:
    """``(1, new)`` ids of transformers' own video path."""
    model = backbone.model
    ids = prompt_of(backbone, Adaptation().plan_frames(len(frames), backbone.facts.grid).visual_tokens)
    pixels = pixels_of(frames, backbone.facts.image_side).to(model.device, model.dtype)
    with torch.no_grad():
        output: torch.Tensor = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=pixels[None], **_options()
        )
    return output[:, ids.shape[1] :]


def answer_by_us(backbone: LlavaOnevision, frames: NDArray[np.uint8], adaptation: Adaptation) -> torch.Tensor:
    """``(1, new)`` ids, a chunk of frames and a chunk of the prompt at a time."""
    plan = adaptation.plan_frames(len(frames), backbone.facts.grid)
    chunks = np.split(frames, range(FRAME_CHUNK, len(frames), FRAME_CHUNK))
    pixels = (pixels_of(chunk, backbone.facts.image_side) for chunk in chunks)
    with torch.no_grad():
        tokens = streamed_tokens(backbone, pixels, plan, store_device="cpu")
        new_ids: torch.Tensor = generate(backbone, prompt_of(backbone, plan.visual_tokens), tokens, **_options())
    return new_ids


def call_of(backbone: LlavaOnevision, curve: str, frames: NDArray[np.uint8]) -> Callable[[], torch.Tensor]:
    """What a curve measures."""
    if curve == BASELINE:
        return lambda: answer_by_transformers(backbone, frames)
    return lambda: answer_by_us(backbone, frames, ADAPTATIONS[curve])


def some_frames(count: int) -> NDArray[np.uint8]:
    """Noise, the same every time."""
    return np.random.default_rng(0).integers(0, 256, (count, *FRAME_SIZE), dtype=np.uint8)


def measure(point: Point) -> dict[str, float]:
    """Measure one point in this process."""
    backbone = build(point.size, point.device)
    call_of(backbone, point.curve, some_frames(WARM_UP_FRAMES))()
    call = call_of(backbone, point.curve, some_frames(point.frames))
    if point.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start_s = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - start_s, "peak_bytes": torch.cuda.max_memory_allocated()}
    before = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    start_s = time.process_time()
    call()
    seconds = time.process_time() - start_s
    return {"seconds": seconds, "peak_bytes": memory_bytes("VmHWM") - before}


def measure_into(pipe: Connection, point: Point) -> None:
    """Send what ``measure`` returns, or None when the device's memory did not suffice."""
    try:
        pipe.send(measure(point))
    except torch.OutOfMemoryError:
        pipe.send(None)


def medians(point: Point, repeats: int) -> dict[str, float | str]:
    """Medians of a point's children, or why there are none."""
    fork = multiprocessing.get_context("fork")
    runs = []
    for _ in range(repeats):
        here, there = fork.Pipe(duplex=False)
        child = fork.Process(target=measure_into, args=(there, point))
        child.start()
        there.close()
        try:
            numbers = here.recv()
        except EOFError:
            raise RuntimeError(f"{point}: the child failed, see above") from None
        child.join()
        if numbers is None:
            return {"failed": "out of memory"}
        runs.append(numbers)
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown, each with its ratios to the baseline at the same number of frames."""
    lines = [
        "| frames | curve | visual tokens | peak MiB | of transformers | seconds | of transformers |",
        "|---|---|---|---|---|---|---|",
    ]
    baselines = {row["frames"]: row for row in rows if row["curve"] == BASELINE}
    for row in rows:
        name = f"| {row['frames']} | {row['curve']} | {row['visual_tokens']} |"
        if "failed" in row:
            lines.append(f"{name} {row['failed']} | | | |")
            continue
        baseline = baselines.get(row["frames"], {"failed": "not measured"})
        ratios = [
            "" if "failed" in baseline else f"{row[key] / baseline[key]:.2f}" for key in ("peak_bytes", "seconds")
        ]
        lines.append(f"{name} {row['peak_bytes'] / MIB:.0f} | {ratios[0]} | {row['seconds']:.2f} | {ratios[1]} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Peak memory and seconds over frames, one line a curve."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for axis, key, unit, label in zip(
        axes, ("peak_bytes", "seconds"), (MIB, 1), ("peak memory / MiB", "seconds"), strict=True
    ):
        for curve in CURVES:
            points = [(row["frames"], row[key] / unit) for row in rows if row["curve"] == curve and key in row]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=curve)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("frames")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _options() -> dict[str, Any]:
    return {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}


def main() -> None:
    """Run every point, print and write the table, the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for frames_memory.json, .md and .png")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32, 64, 128, 256, 512], help="numbers of frames")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=CURVES, help="what to measure (all)")
    parser.add_argument("--size", choices=("nano", "0.5b", "7b"), default="nano", help="of the model (nano)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs (cpu)")
    parser.add_argument("--repeats", type=int, default=3, help="children a point (3)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    grid = LlavaOnevision.facts_of(
        nano_config() if arguments.size == "nano" else published_backbone(f"llava-onevision-{arguments.size}")
    ).grid
    rows: list[dict[str, Any]] = []
    for frames in arguments.frames:
        for curve in arguments.curves:
            point = Point(curve=curve, frames=frames, size=arguments.size, device=arguments.device)
            tokens = ADAPTATIONS.get(curve, Adaptation()).plan_frames(frames, grid).visual_tokens
            rows.append({**asdict(point), "visual_tokens": tokens, **medians(point, arguments.repeats)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    machine = {"cores": os.cpu_count(), "threads": 1, "platform": platform.platform()}
    text = (
        f"{table(rows)}\n\nMedians of {arguments.repeats}; {arguments.size} on {arguments.device}, torch threads 1.\n"
    )
    write_json(arguments.out / "frames_memory.json", {"machine": machine, "torch": torch.__version__, "rows": rows})
    write_text(arguments.out / "frames_memory.md", text)
    plot(rows, arguments.out / "frames_memory.png", f"LLaVA-OneVision {arguments.size} on {arguments.device}")
    print(text)


if __name__ == "__main__":
    main()
