"""Measure memory and time of a stage-3 training step over long sequences, one process a measurement.

    python -m scripts.bench.long_sequences --out bench/
    python -m scripts.bench.long_sequences --out bench/ --model 7b --lora --device cuda --tokens 65536

A step is the forward pass, the backward pass and AdamW's update on one film: two visual tokens a frame and six of text,
the last eighth supervised. The language model (or its LoRA adapters) and the content projector train, as in stage 3.
Ways to make it fit:

    plain          nothing: all activations are kept
    checkpointing  gradient checkpointing: each layer's input is kept
    offload        and these inputs are kept in host memory (no difference on a CPU)
    tiled          checkpointing, and MLPs over 4096 tokens at a time (DeepSpeed's TiledMLP)
    parallel       checkpointing, and two processes with half of the sequence each (DeepSpeed's Ulysses)

The nano model has trained weights and frames; the 7B one has random weights and is given tower features. On a CPU the
peak is that of resident memory (``VmHWM``) over what was resident before the step, and seconds are CPU seconds of one
thread, which other jobs hardly change; on a GPU it is ``max_memory_allocated``, weights included, and seconds pass on
the wall. Two processes have a line each. A step of 256 tokens comes first, so optimiser states are not in the peak of a
CPU. MFU is reported for a GPU: FLOPs are those of ``longvid_train.training.flops``, recomputation not counted.
"""

import argparse
import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from longvid_train.commands.init import NANO_PARTS
from longvid_train.files import write_json, write_text
from longvid_train.models.llama_vid import LlamaVidForConditionalGeneration, build_llama_vid
from longvid_train.models.llama_vid.sizes import published_config
from longvid_train.training.activations import ActivationMemory, apply_activation_memory
from longvid_train.training.flops import count_flops
from longvid_train.training.lora import LoraSettings, apply_lora, plan_lora
from longvid_train.training.optimizer import OptimizerConfig, build_adamw
from longvid_train.training.peak_rate import peak_rate
from longvid_train.training.stages import Stage, apply_stage, recompute_frozen_layers
from longvid_train.training.strategies.sequence_attention import SequenceAttention
from longvid_train.training.strategies.sequence_shard import SequenceShard, shard_loss_sum
from longvid_train.training.strategies.zero import use_cpu
from longvid_train.training.work import work_of
from longvid_train.types import IGNORE_INDEX, Batch
from scripts.bench.loss_memory import memory_bytes
from scripts.bench.training_step import TOKENS_PER_FRAME_OF_ROW, film_frames, film_row

WARM_UP_TOKENS = 256
MIB = 2**20
KEPT = ActivationMemory()


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a step is made to fit."""

    checkpointing: bool = True
    memory: ActivationMemory = KEPT
    processes: int = 1


WAYS = {
    "plain": Way(checkpointing=False),
    "checkpointing": Way(),
    "offload": Way(memory=ActivationMemory(offload=True)),
    "tiled": Way(memory=ActivationMemory(mlp_tile_tokens=4096)),
    "parallel": Way(processes=2),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement."""

    way: str
    tokens: int
    model: str
    lora: bool
    device: str
    share: float


def build_model(cell: Cell) -> LlamaVidForConditionalGeneration:
    """LLaMA-VID as stage 3 trains it."""
    torch.manual_seed(0)
    if cell.model == "nano":
        words = json.loads((NANO_PARTS / "language_model" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        model = build_llama_vid(
            vision_tower=NANO_PARTS / "tower",
            text_decoder=NANO_PARTS / "qformer",
            language_model=NANO_PARTS / "language_model",
            visual_token_id=words,
        ).to(cell.device)
    else:
        with torch.device(cell.device):
            model = LlamaVidForConditionalGeneration._from_config(published_config("7b"), dtype=torch.bfloat16)
    way = WAYS[cell.way]
    if way.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    projector = Stage(name="long_video", trainable=("content_projector",))
    if cell.lora:
        lora = LoraSettings(r=64, alpha=128, target_modules=["language_model.model"])
        apply_lora(model, plan_lora(model, projector, lora))
    else:
        apply_stage(model, Stage(name="long_video", trainable=("language_model", "content_projector")))
    if way.checkpointing:
        recompute_frozen_layers(model)
    apply_activation_memory(model.get_decoder(), way.memory)
    return model


def film(model: LlamaVidForConditionalGeneration, cell: Cell, tokens: int) -> Batch:
    """One row of ``tokens`` on the cell's device; the 7B model's tower features stay on the host."""
    ids, labels = film_row(model, tokens, cell.share)
    frames = tokens // TOKENS_PER_FRAME_OF_ROW
    if cell.model == "nano":
        visual = film_frames(model, frames)
        visual["pixel_values"] = visual["pixel_values"].to(cell.device)
    else:
        visual = film_frames(model, 0)
        del visual["pixel_values"]
        visual["visual_spans"] = torch.tensor([[0, frames, 0]])
        width = model.config.vision_config.hidden_size
        visual["visual_features"] = torch.randn(frames, 1 + model.config.visual_grid**2, width, dtype=torch.bfloat16)
    for name in ("prompt_input_ids", "prompt_attention_mask"):
        visual[name] = visual[name].to(cell.device)  # type: ignore[literal-required]
    mask = torch.ones_like(ids)
    text = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return Batch(
        text={name: value.to(cell.device) for name, value in text.items()},  # type: ignore[typeddict-item]
        visual=visual,
        sample_ids=["film"],
        shortened={},
    )


class Parts:
    """Whole sequences, or this process's part of each: what a step asks of it."""

    def __init__(self, device: str) -> None:
        """Join the other processes, if the environment names any."""
        self.shard: SequenceShard | None = None
        self._attention: SequenceAttention | None = None
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return
        import deepspeed
        from deepspeed.runtime.sequence_parallel import parallel_state_sp

        if device == "cpu":
            use_cpu()
        deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", verbose=False)
        size = torch.distributed.get_world_size()
        parallel_state_sp.initialize_sequence_parallel(sequence_parallel_size=size)
        group = parallel_state_sp.get_sequence_parallel_group()
        self.shard = SequenceShard(rank=torch.distributed.get_rank(), size=size, group=group)
        self._attention = SequenceAttention(group)

    @contextmanager
    def sharing(self, model: LlamaVidForConditionalGeneration) -> Iterator[None]:
        """Within, ``model`` attends over the parts of all processes."""
        if self._attention is None:
            yield
            return
        with self._attention.installed(model.get_decoder()):
            yield

    def loss(self, model: LlamaVidForConditionalGeneration, batch: Batch) -> torch.Tensor:
        """This process's share of the mean loss."""
        assert batch["visual"] is not None
        labels, visual = batch["text"]["labels"], {**batch["visual"]}
        count = (labels[:, 1:] != IGNORE_INDEX).sum()
        if self.shard is None:
            total, _ = model.loss_sum(**batch["text"], **visual)
            return total / count
        if "pixel_values" in visual:
            pixels: Any = visual.pop("pixel_values")
            visual["visual_features"] = self.shard.gathered(model.encode_frames, pixels)
        keywords: dict[str, Any] = visual
        embeds = model.multimodal_embeddings(batch["text"]["input_ids"], **keywords)
        total, _ = shard_loss_sum(self.shard, model.get_decoder(), model.get_output_embeddings(), embeds, labels)
        return total / count

    def sum(self, values: list[torch.Tensor]) -> None:
        """Add what the processes have, in place."""
        if self.shard is not None:
            for value in values:
                torch.distributed.all_reduce(value)


def step_of(
    model: LlamaVidForConditionalGeneration, optimizer: torch.optim.Optimizer, parts: Parts, batch: Batch
) -> Callable[[], float]:
    """A training step, which returns the mean loss over all processes."""

    def run() -> float:
        with parts.sharing(model):
            loss = parts.loss(model, batch)
            loss.backward()
        parts.sum([value.grad for value in model.parameters() if value.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        parts.sum([mean])
        return float(mean)

    return run


def measure(cell: Cell, limit_gib: float) -> dict[str, Any]:
    """Measure a cell in this process, beside the others of its group."""
    if cell.device == "cpu":
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_AS, (int(limit_gib * 2**30),) * 2)
    parts, model = Parts(cell.device), build_model(cell)
    optimizer = build_adamw(model, OptimizerConfig(lr=1e-5))
    step_of(model, optimizer, parts, film(model, cell, WARM_UP_TOKENS))()
    batch = film(model, cell, cell.tokens)
    run = step_of(model, optimizer, parts, batch)
    flops = sum(part.total for part in count_flops(model, work_of(batch, model.config)).values())
    numbers: dict[str, Any] = _on_cpu(run) if cell.device == "cpu" else _on_gpu(run)
    if cell.device != "cpu":
        peak = peak_rate(torch.device(cell.device), "bf16-true" if cell.model == "7b" else "32-true")
        assert peak is not None
        processes = WAYS[cell.way].processes
        numbers |= {"mfu": flops / (numbers["seconds"] * processes * peak.flops_per_s), "peak_source": peak.source}
    return {"flops": flops, **numbers}


def _on_cpu(run: Callable[[], float]) -> dict[str, float]:
    before = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    start_s, start_wall_s = time.process_time(), time.perf_counter()
    loss = run()
    return {
        "seconds": time.process_time() - start_s,
        "wall_s": time.perf_counter() - start_wall_s,
        "peak_bytes": memory_bytes("VmHWM") - before,
        "mean_loss": loss,
    }


def _on_gpu(run: Callable[[], float]) -> dict[str, float]:
    run()  # kernels are chosen at their first use
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    loss = run()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start_s
    peak = torch.cuda.max_memory_allocated()
    return {"seconds": seconds, "wall_s": seconds, "peak_bytes": peak, "mean_loss": loss}


def measured(cell: Cell, limit_gib: float, timeout_s: float) -> list[dict[str, Any]] | str:
    """What each process of a cell measured, or why there is nothing."""
    processes = WAYS[cell.way].processes
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", __spec__.name if __spec__ else "scripts.bench.long_sequences"]
    command += ["--cell", json.dumps(asdict(cell)), "--limit-gib", str(limit_gib)]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    if cell.device == "cpu":
        common["OMP_NUM_THREADS"] = "1"
    started = [
        subprocess.Popen(
            command,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(processes)
    ]
    deadline_s = time.monotonic() + timeout_s
    try:
        outputs = [one.communicate(timeout=max(1.0, deadline_s - time.monotonic()))[0] for one in started]
    except subprocess.TimeoutExpired:
        return f"over {timeout_s:.0f} s"
    finally:
        for one in started:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
                one.wait()
    if any(one.returncode for one in started):
        return f"failed ({', '.join(str(one.returncode) for one in started)}), see above"
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown: a line for each process, peaks against those of ``checkpointing`` at the same length."""
    lines = [
        "| tokens | way | process | peak MiB | of checkpointing | s | tokens/s | MFU | loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    baseline = {row["tokens"]: row["peak_bytes"] for row in rows if row["way"] == "checkpointing" and "rank" in row}
    for row in rows:
        name = f"| {row['tokens']} | {row['way']} |"
        if "failed" in row:
            lines.append(f"{name} | {row['failed']} | | | | | |")
            continue
        ratio = f"{row['peak_bytes'] / baseline[row['tokens']]:.2f}" if row["tokens"] in baseline else ""
        mfu = f"{row['mfu']:.1%}" if "mfu" in row else ""
        lines.append(
            f"{name} {row['rank']} | {row['peak_bytes'] / MIB:,.0f} | {ratio} | {row['seconds']:,.1f} | "
            f"{row['tokens'] / row['seconds']:,.0f} | {mfu} | {row['mean_loss']:.6f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run every cell, print and write the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for long_sequences.json and long_sequences.md")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384, 32768, 65536], help="row lengths")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to measure (all)")
    parser.add_argument("--model", choices=["nano", "7b"], default="nano", help="trained nano, or random 7B (nano)")
    parser.add_argument("--lora", action="store_true", help="train adapters of rank 64 instead of the language model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where (cpu)")
    parser.add_argument("--share", type=float, default=0.125, help="supervised share of a row (0.125)")
    parser.add_argument("--limit-gib", type=float, default=24.0, help="address space of a process on the CPU (24)")
    parser.add_argument("--timeout", type=float, default=7200.0, help="seconds a measurement may take (7200)")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell is not None:
        print(json.dumps(measure(Cell(**json.loads(arguments.cell)), arguments.limit_gib)))
        return
    if arguments.out is None:
        parser.error("--out is required")
    rows: list[dict[str, Any]] = []
    for tokens in arguments.tokens:
        for way in arguments.ways:
            cell = Cell(
                way=way,
                tokens=tokens,
                model=arguments.model,
                lora=arguments.lora,
                device=arguments.device,
                share=arguments.share,
            )
            found = measured(cell, arguments.limit_gib, arguments.timeout)
            new = [{"failed": found}] if isinstance(found, str) else [{"rank": r, **one} for r, one in enumerate(found)]
            rows += [{**asdict(cell), **one} for one in new]
            print(json.dumps(rows[-len(new) :]), file=sys.stderr, flush=True)
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "torch": torch.__version__}
    text = f"{table(rows)}\n"
    write_json(arguments.out / "long_sequences.json", {"machine": machine, "rows": rows})
    write_text(arguments.out / "long_sequences.md", text)
    print(text)


if __name__ == "__main__":
    main()
