"""Measure the memory and speed of the supervised loss against transformers' own loss.

    python -m scripts.bench.loss_memory --out bench/ --repeats 3

The language model is the shipped nano one; ``--head`` also tries it with a vocabulary of Vicuna's size (32,000 words,
fresh weights), where logits dominate. Two losses over the same labels:

    transformers  LlamaForCausalLM's loss: logits of every position, then ``ForCausalLMLoss`` (the baseline)
    ours          logits of supervised positions only, a chunk of them at a time (``supervised_loss_sum``)

and three scopes: ``loss`` is the head and the loss over given hidden states, forward and backward; ``step`` is the
whole forward and backward pass of the language model with SDPA attention; ``train`` is a whole training step of nano
LLaMA-VID, frames and AdamW included (``scripts/bench/training_step.py``). Each number comes from a forked child of its
own: ``peak`` is the child's high-water mark of resident memory (``VmHWM``, reset before the measured call) minus what
was resident before it; seconds are CPU seconds of the call on one thread, which other jobs on the machine hardly
change, after a warm-up at 256 tokens. Cells are medians of the repeats, and ratios are against the baseline of the same
cell. A child that passes ``--limit-gib`` is reported as not fitting, one that passes ``--timeout`` as too slow.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from longvid_train.commands.init import NANO_PARTS
from longvid_train.files import write_json, write_text
from longvid_train.models.supervised_loss import supervised_loss_sum
from longvid_train.types import IGNORE_INDEX
from scripts.bench.training_step import load_llama_vid, training_step

BASELINE = "transformers"
LOSSES = (BASELINE, "ours")
SCOPES = ("loss", "step", "train")
WARM_UP_TOKENS = 256
VICUNA_WORDS = 32_000
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one child measures."""

    scope: str
    loss: str
    words: int
    tokens: int
    supervised_share: float


def load_language_model(words: int) -> LlamaForCausalLM:
    """The nano language model with ``words`` words: its own, or fresh embeddings of another vocabulary."""
    model = LlamaForCausalLM.from_pretrained(NANO_PARTS / "language_model", dtype=torch.float32)
    if words != model.config.vocab_size:
        torch.manual_seed(0)
        model.resize_token_embeddings(words, mean_resizing=False)
    return model.train()


def labels_of(ids: torch.Tensor, share: float) -> torch.Tensor:
    """Supervise the last ``share`` of the row, as an answer behind a video is."""
    labels = torch.full_like(ids, IGNORE_INDEX)
    count = round(share * ids.shape[1])
    labels[:, ids.shape[1] - count :] = ids[:, ids.shape[1] - count :]
    return labels


def pass_of(model: LlamaForCausalLM, cell: Cell, tokens: int) -> Callable[[], torch.Tensor]:
    """The forward and backward pass that a cell measures, with its inputs made; it returns the mean loss."""
    ids = torch.randint(0, cell.words, (1, tokens), generator=torch.Generator().manual_seed(0))
    labels = labels_of(ids, cell.supervised_share)
    given = torch.randn(1, tokens, model.config.hidden_size, requires_grad=True)

    def hidden_states() -> torch.Tensor:
        return given if cell.scope == "loss" else model.model(input_ids=ids, use_cache=False).last_hidden_state

    def run() -> torch.Tensor:
        if cell.loss == BASELINE:
            logits = model.lm_head(hidden_states())
            loss = model.loss_function(logits=logits, labels=labels, vocab_size=cell.words)
        else:
            total, count = supervised_loss_sum(hidden_states(), labels, model.lm_head)
            loss = total / count
        loss.backward()
        return loss.detach()

    return run


def passes_of(cell: Cell) -> tuple[Callable[[], torch.Tensor], Callable[[], Callable[[], torch.Tensor]]]:
    """The warm-up of a cell, and what makes the pass to measure: both over one model."""
    if cell.scope == "train":
        model = load_llama_vid(cell.words)
        make = partial(training_step, model, plain_loss=cell.loss == BASELINE, share=cell.supervised_share)
        return make(tokens=WARM_UP_TOKENS), partial(make, tokens=cell.tokens)
    language_model = load_language_model(cell.words)
    return pass_of(language_model, cell, WARM_UP_TOKENS), partial(pass_of, language_model, cell, cell.tokens)


def memory_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def measure(cell: Cell, limit_gib: float) -> dict[str, float]:
    """Measure one cell in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (int(limit_gib * 2**30),) * 2)
    warm_up, make = passes_of(cell)
    warm_up()
    run = make()
    before = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    start_s = time.process_time()
    loss = run()
    seconds = time.process_time() - start_s
    return {"seconds": seconds, "peak_bytes": memory_bytes("VmHWM") - before, "mean_loss": float(loss)}


def measure_into(pipe: Connection, cell: Cell, limit_gib: float) -> None:
    """Send what ``measure`` returns, or None when the memory did not suffice."""
    try:
        pipe.send(measure(cell, limit_gib))
    except MemoryError:
        pipe.send(None)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch has no class of its own for this on the CPU
            raise
        pipe.send(None)


def measure_in_child(cell: Cell, limit_gib: float, timeout_s: float) -> dict[str, float] | str:
    """Measure a cell in a fork of this process; a word when it cannot be."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    child = fork.Process(target=measure_into, args=(there, cell, limit_gib))
    child.start()
    there.close()
    try:
        if not here.poll(timeout_s):
            return f"over {timeout_s:.0f} s"
        numbers: dict[str, float] | None = here.recv()
    except EOFError:
        raise RuntimeError(f"{cell}: the child failed, see above") from None
    finally:
        child.kill()
        child.join()
    return f"over {limit_gib:.0f} GiB" if numbers is None else numbers


def medians(cell: Cell, repeats: int, limit_gib: float, timeout_s: float) -> dict[str, float | str]:
    """Medians of a cell's repeats, or why there are none."""
    runs = []
    for _ in range(repeats):
        result = measure_in_child(cell, limit_gib, timeout_s)
        if isinstance(result, str):
            return {"failed": result}
        runs.append(result)
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """Every cell, the baseline first in each pair."""
    nano = json.loads((NANO_PARTS / "language_model" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    stepped = [size for size in arguments.tokens if size <= arguments.step_tokens]
    lengths = {"loss": arguments.tokens, "step": stepped, "train": stepped}
    return [
        Cell(scope=scope, loss=loss, words=words, tokens=tokens, supervised_share=share)
        for scope in arguments.scopes
        for words in (nano, *((VICUNA_WORDS,) if arguments.head else ()))
        for tokens in lengths[scope]
        for share in arguments.shares
        for loss in LOSSES
    ]


def table(rows: list[dict[str, object]]) -> str:
    """Rows as Markdown, each with its ratios to the baseline above it."""
    lines = [
        "| scope | vocabulary | tokens | supervised | loss | peak MiB | of baseline | tokens/CPU s | of baseline |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    baseline: dict[str, object] = {}
    for row in rows:
        if row["loss"] == BASELINE:
            baseline = row
        name = f"| {row['scope']} | {row['words']} | {row['tokens']} | {row['supervised_share']:.0%} | {row['loss']} |"
        if "failed" in row:
            lines.append(f"{name} {row['failed']} | | | |")
            continue
        peak, rate = _peak(row), _rate(row)
        ratios = (
            [""] * 2 if "failed" in baseline else [f"{peak / _peak(baseline):.2f}", f"{rate / _rate(baseline):.2f}"]
        )
        lines.append(f"{name} {peak / MIB:.0f} | {ratios[0]} | {rate:,.0f} | {ratios[1]} |")
    return "\n".join(lines)


def _peak(row: dict[str, object]) -> float:
    return float(str(row["peak_bytes"]))


def _rate(row: dict[str, object]) -> float:
    return float(str(row["tokens"])) / float(str(row["seconds"]))


def main() -> None:
    """Run every cell, print and write the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for loss_memory.json and loss_memory.md")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 65536], help="row lengths")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.125], help="supervised shares of a row")
    parser.add_argument("--scopes", nargs="+", choices=SCOPES, default=SCOPES, help="what to measure (all)")
    parser.add_argument("--step-tokens", type=int, default=8192, help="longest row of a whole step (8192)")
    parser.add_argument("--head", action="store_true", help=f"also a vocabulary of {VICUNA_WORDS} words")
    parser.add_argument("--repeats", type=int, default=3, help="children a cell (3)")
    parser.add_argument("--limit-gib", type=float, default=24.0, help="address space of a child (24)")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a child may take (900)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for cell in cells_of(arguments):
        rows.append({**asdict(cell), **medians(cell, arguments.repeats, arguments.limit_gib, arguments.timeout)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    machine = {"cores": os.cpu_count(), "threads": 1, "platform": platform.platform()}
    text = f"{table(rows)}\n\nMedians of {arguments.repeats}; one thread of {machine['cores']} cores.\n"
    write_json(arguments.out / "loss_memory.json", {"machine": machine, "torch": torch.__version__, "rows": rows})
    write_text(arguments.out / "loss_memory.md", text)
    print(text)


if __name__ == "__main__":
    main()
