"""Measure answering under a zoom against vanilla decoding and SlowFast: tokens/s, tokens, memory, time by module.

    python -m scripts.bench.zoom --out bench/
    python -m scripts.bench.zoom --out bench/ --device cuda --size 7b

The model is a LLaVA-NeXT-Video with random weights and the paper's token counts (336 pixels, 144 tokens a frame in
full, 64 in the overview): ``nano`` (8 layers of 256, float32) or the public ``7b`` (bfloat16). A question about frames
in memory is answered with ``--new-tokens`` drawn tokens, every 16th word of the vocabulary ending a sentence, under

    vanilla   32 frames
    slowfast  SlowFast-LLaVA: 50 frames, 10 of them in detail
    overview  22 of 32 frames at 224 pixels
    zoom      overview, then 10 frames in full after 20 tokens, which are generated again
    adjusted  zoom, and 10 tokens copied and 10 dropped every 3 sentences

Each answer is made in a forked child of its own, all methods in turn, ``--repeats`` times; cells are medians. On a CPU
seconds are CPU seconds on one thread, which other jobs hardly change (shares of modules are of wall-clock seconds), and
``peak`` is the child's high-water mark of resident memory minus what was resident before the question. On CUDA seconds
are wall-clock and ``peak`` is all device memory allocated at most, weights included.

``total`` runs from decoded frames to the last token, resizing and vision tower included; ``answer`` begins behind the
tower; ``tokens/s`` is new tokens over ``answer``, as the paper counts it. ``augmenter`` is drafting, scoring and
showing frames in full, ``adjusting`` sentence ends, attention at them and adjustments, as shares of ``total``.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from longvid_train.adaptation.settings import Adaptation
from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.evaluation.claims.asking import chat_under
from longvid_train.files import write_json, write_text
from longvid_train.generate.chat import FramesRequest, VideoChat
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.zoom.trace import ZoomTrace
from longvid_train.models.backbones.llava_next_video import LlavaNextVideo
from longvid_train.models.backbones.processing import BackboneProcessor
from longvid_train.models.backbones.published import published_backbone
from longvid_train.rope.unextended import NoWindow
from longvid_train.tokens.slowfast import SlowFastPlan
from scripts.bench.loss_memory import MIB, memory_bytes

BASELINE = "vanilla"
WINDOW = NoWindow(extrapolate=True)
METHODS = {
    BASELINE: Adaptation(frames=32, window=WINDOW),
    "slowfast": Adaptation(frames=50, window=WINDOW, plan=SlowFastPlan()),
    "overview": Adaptation(frames=32, window=WINDOW, zoom=ZoomChoice(zoomed_frames=0, adjusted_tokens=0)),
    "zoom": Adaptation(frames=32, window=WINDOW, zoom=ZoomChoice(adjusted_tokens=0)),
    "adjusted": Adaptation(frames=32, window=WINDOW, zoom=ZoomChoice()),
}
FRAME_SIZE = (336, 336, 3)
SENTENCE_WORDS = 16
WARM_UP_TOKENS = 24
UNKNOWN, START, END, PAD = range(4)
QUESTION = "What happens?"


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one child measures."""

    method: str
    size: str
    device: str
    new_tokens: int
    seed: int


def nano_config() -> LlavaNextVideoConfig:
    """24 x 24 patches a frame, pooled to 12 x 12, as the public checkpoints; a small decoder."""
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=4096,
    )
    return LlavaNextVideoConfig(vision_config=vision, text_config=text, image_token_index=4094, video_token_index=4095)


def config_of(size: str) -> Any:
    return nano_config() if size == "nano" else published_backbone("llava-next-video-7b")


def word_tokenizer(config: Any) -> PreTrainedTokenizerFast:
    """A word a token: ``W5``, and ``W16.`` where a sentence ends."""
    named = {UNKNOWN: "<unk>", START: "<s>", END: "</s>", PAD: "<pad>"}
    named |= {config.image_token_id: "<image>", config.video_token_id: "<video>"}
    words = [f"W{number}{'' if number % SENTENCE_WORDS else '.'}" for number in range(config.text_config.vocab_size)]
    vocabulary = {named.get(number, word): number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(list(named.values()))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build(size: str, device: str) -> LlavaNextVideo:
    """A model with random weights, made where it runs."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaNextVideoForConditionalGeneration._from_config(
            config_of(size), dtype=torch.float32 if size == "nano" else torch.bfloat16
        )
    return LlavaNextVideo(model.eval())


def chat_of(backbone: LlavaNextVideo, adaptation: Adaptation) -> VideoChat:
    side = backbone.facts.image_side
    processor = BackboneProcessor(
        word_tokenizer(backbone.model.config),
        backbone.facts,
        {"size": {"height": side, "width": side}, "do_center_crop": False},
        prompt="USER: <video> {question} ASSISTANT:",
    )
    return chat_under(backbone, processor, adaptation)


def some_frames(count: int) -> NDArray[np.uint8]:
    """Noise, the same every time."""
    return np.random.default_rng(0).integers(0, 256, (count, *FRAME_SIZE), dtype=np.uint8)


def options_of(point: Point, new_tokens: int) -> GenerationOptions:
    """Drawn, so that random weights do not repeat one word; never the end."""
    return GenerationOptions(
        max_new_tokens=new_tokens, temperature=1.0, seed=point.seed, extra={"suppress_tokens": [END, PAD]}
    )


def measure(point: Point) -> dict[str, Any]:
    """Measure one answer in this process."""
    adaptation = METHODS[point.method]
    assert adaptation.frames is not None
    chat = chat_of(build(point.size, point.device), adaptation)
    request = FramesRequest(some_frames(adaptation.frames))
    chat.open([request]).ask(QUESTION, options_of(point, WARM_UP_TOKENS))
    reset_peak(point.device)
    before, cpu_s = memory_bytes("VmRSS"), time.process_time()
    talk = chat.open([request])
    encoded = talk.encode()
    encoded_cpu_s = time.process_time()
    answer = talk.ask(QUESTION, options_of(point, point.new_tokens))
    done_cpu_s = time.process_time()
    assert answer.new_tokens == point.new_tokens, answer.notes
    on_cpu = point.device == "cpu"
    answer_s = done_cpu_s - encoded_cpu_s if on_cpu else answer.seconds
    total_s = done_cpu_s - cpu_s if on_cpu else encoded.decode_s + encoded.encode_s + answer.seconds
    row = {
        "visual_tokens": answer.visual_tokens,
        "total_s": total_s,
        "answer_s": answer_s,
        "tokens_per_s": answer.new_tokens / answer_s,
        "peak_bytes": memory_bytes("VmHWM") - before if on_cpu else torch.cuda.max_memory_allocated(),
    }
    return row | modules_of(answer.trace, encoded.decode_s + encoded.encode_s)


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def modules_of(trace: ZoomTrace | None, encode_s: float) -> dict[str, Any]:
    """Shares of the wall-clock seconds of an answer's modules; none for a method that does not zoom."""
    if trace is None:
        return {}
    seconds = replace(trace.seconds, overview_encode_s=encode_s)
    shares = {name: value / seconds.total_s for name, value in asdict(seconds).items()}
    return {
        "augmenter_share": seconds.augmenter_s / seconds.total_s,
        "draft_share": seconds.draft_s / seconds.total_s,
        "adjusting_share": seconds.adjustment_s / seconds.total_s,
        "adjustments": len(trace.adjustments),
    } | {f"share_{name}": value for name, value in shares.items()}


def measure_into(pipe: Connection, point: Point) -> None:
    """Send what ``measure`` returns, or why there is nothing."""
    torch.set_num_threads(1)
    try:
        pipe.send(measure(point))
    except torch.OutOfMemoryError:
        pipe.send({"failed": "out of memory"})


def in_a_child(point: Point) -> dict[str, Any]:
    """What a forked child measures."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=measure_into, args=(there, point))
    child.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        raise RuntimeError(f"{point}: the child failed, see above") from None
    child.join()
    return found


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of every number; a method of which a child failed has none."""
    failed = [run for run in runs if "failed" in run]
    return failed[0] if failed else {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Rows as Markdown, each with its ratios to the baseline."""
    lines = [
        "| method | visual tokens | tokens/s | of vanilla | total s | of vanilla | peak MiB | augmenter | of it draft "
        "| adjusting | adjustments |",
        "|---" * 11 + "|",
    ]
    base = rows.get(BASELINE, {"failed": "not measured"})
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} " + "| " * 9 + "|")
            continue
        ratios = ["" if "failed" in base else f"{row[key] / base[key]:.2f}" for key in ("tokens_per_s", "total_s")]
        shares = [
            f"{100 * row[key]:.1f} %" if key in row else ""
            for key in ("augmenter_share", "draft_share", "adjusting_share")
        ]
        lines.append(
            f"| {name} | {row['visual_tokens']:.0f} | {row['tokens_per_s']:.1f} | {ratios[0]} | {row['total_s']:.2f} "
            f"| {ratios[1]} | {row['peak_bytes'] / MIB:.0f} | {' | '.join(shares)} | {row.get('adjustments', '')} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure every method, print and write the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for zoom.json and zoom.md")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="what to measure (all)")
    parser.add_argument("--size", choices=("nano", "7b"), default="nano", help="of the model (nano)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs (cpu)")
    parser.add_argument("--new-tokens", type=int, default=300, help="length of the answer (300)")
    parser.add_argument("--repeats", type=int, default=5, help="children a method (5)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; leave --device out for the nano model on the CPU")
    if arguments.size == "7b" and arguments.device == "cpu":
        parser.error("--size 7b needs --device cuda: 7 billion weights answer too slowly on a CPU")
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in arguments.methods}
    for repeat in range(arguments.repeats):
        for method, found in runs.items():
            point = Point(
                method=method,
                size=arguments.size,
                device=arguments.device,
                new_tokens=arguments.new_tokens,
                seed=repeat,
            )
            found.append(in_a_child(point))
            print(json.dumps(asdict(point) | found[-1]), file=sys.stderr, flush=True)
    rows = {method: medians(found) for method, found in runs.items()}
    machine = {"cores": os.cpu_count(), "threads": 1, "platform": platform.platform(), "load": os.getloadavg()[0]}
    settings = {"size": arguments.size, "device": arguments.device, "new_tokens": arguments.new_tokens}
    write_json(
        arguments.out / "zoom.json",
        {"machine": machine, "torch": torch.__version__, "settings": settings, "medians": rows, "runs": runs},
    )
    text = f"{table(rows)}\n\nMedians of {arguments.repeats}; {arguments.size} on {arguments.device}.\n"
    write_text(arguments.out / "zoom.md", text)
    print(text)


if __name__ == "__main__":
    main()
