"""Say what a job needs before it runs: operations, bytes, memory and time by roofline, from shapes alone.

examples:
  longvid cost --model llava-onevision-7b --frames 256 --adaptation configs/adaptations/visual_yarn.yaml
  longvid cost --model video-llava-7b --frames 64 --kv-bits 2 --json
  longvid cost --model llava-onevision-7b --frames 256 --kv lloyd2
  longvid cost --model llava-onevision-7b --max-frames --device rtx-4090
  longvid cost --model llama-vid-7b --frames 3600 --train-stage 3 --text-tokens 50000 --gpus 8 --zero 2
  longvid cost --model models/llava-onevision --frames 256 --plot frames.png
  longvid cost --paper intp-table1

Times are lower bounds: every kernel at the device's full rate or bandwidth. Token counts and KV bytes are exact; they
are what ``longvid ask`` reports for the same frames.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvid_train.cost.hardware import DEFAULT, GIGA, TERA, Hardware, hardware, hardware_names
from longvid_train.cost.intp_table import ERRATA, table_rows
from longvid_train.errors import UserError

if TYPE_CHECKING:
    from longvid_train.commands.costing import Plan, Planner, Question

PAPERS = ("intp-table1",)
KV_BITS = (16, 8, 4, 3, 2, 1)
CURVE_STEPS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid cost``."""
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="M", help="short name, hub id or folder; only its configuration is read")
    what.add_argument("--paper", choices=PAPERS, help="reproduce a paper's table, with its errata")
    add("--frames", type=int, metavar="N", help="frames of the video")
    add("--adaptation", type=Path, metavar="YAML", help="plan, grouping, window and cache")
    add("--max-frames", action="store_true", help="say how many frames fit on the device")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument(
        "--kv-bits", type=int, choices=KV_BITS, help="bits of a cached number: static scales and no windows (16: plain)"
    )
    cache.add_argument("--kv", metavar="NAME|DIR", help="a cache preset, or a folder that `longvid calibrate` wrote")
    add("--weight-bytes", type=int, choices=(2, 4), default=2, help="bytes of a parameter and an activation (2)")
    add("--text-tokens", type=int, default=64, metavar="N", help="tokens of the prompt around the video (64)")
    add("--new-tokens", type=int, default=256, metavar="N", help="tokens of the answer (256)")
    add("--batch", type=int, default=1, metavar="B", help="questions at once; rows of a training micro-batch (1)")
    add("--prefill-chunk", type=int, metavar="N", help="tokens of the prompt in the decoder at once (1024, as ask)")
    add("--device", default=DEFAULT, metavar="D", help=f"{', '.join(hardware_names())} ({DEFAULT})")
    add("--tflops", type=float, metavar="T", help="dense 16-bit TFLOP/s, instead of the device's")
    add("--bandwidth-gbs", type=float, metavar="G", help="memory bandwidth in GB/s, instead of the device's")
    add("--memory-gb", type=float, metavar="G", help="memory in GB, instead of the device's")
    add("--train-stage", type=int, metavar="S", help="plan training of LLaMA-VID's stage 1, 2 or 3 instead")
    add("--gpus", type=int, default=1, metavar="G", help="devices that train (1)")
    add("--zero", type=int, default=2, metavar="Z", help="DeepSpeed ZeRO stage, 0 for DDP (2)")
    add("--plot", type=Path, metavar="PNG", help="memory and time over 1 to N frames")
    add("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Plan and print."""
    if arguments.paper is not None:
        return _paper(arguments.json)
    if arguments.frames is None and not arguments.max_frames:
        raise UserError("how many frames? Give --frames N, or --max-frames to learn how many fit")
    if arguments.train_stage is not None:
        return _training(arguments)
    planner = _planner(arguments)
    if arguments.max_frames:
        return _capacity(planner, arguments.json)
    plan = planner.plan(arguments.frames)
    if arguments.plot is not None:
        _plot(planner, arguments.frames, arguments.plot)
    if arguments.json:
        print(json.dumps(plan.record() | {"device": asdict(planner.hardware)}))
    else:
        _print_plan(plan, planner.hardware)
    return 0


def _paper(as_json: bool) -> int:
    rows = table_rows()
    if as_json:
        print(
            json.dumps({"paper": "INTP, arXiv 2409.12963, Table 1", "rows": list(map(asdict, rows)), "errata": ERRATA})
        )
        return 0
    print("INTP, arXiv 2409.12963, Table 1: one decode step of Vicuna-7B")
    print(f"{'frames':>6} {'KV bits':>7} {'OPs (G)':>8} {'decode (ms)':>11} {'total (GB)':>10} {'KV (GB)':>8}")
    for row in rows:
        print(
            f"{row.frames:>6} {row.kv_bits:>7} {row.ops_g:>8.1f} {row.decode_ms:>11.1f} {row.total_gb:>10.1f} "
            f"{row.kv_gb:>8.1f}"
        )
    for erratum in ERRATA:
        print(f"- {erratum}")
    return 0


def _question(arguments: argparse.Namespace) -> "Question":
    from longvid_train.commands.costing import Question
    from longvid_train.models.prefill import PREFILL_CHUNK

    return Question(
        text_tokens=arguments.text_tokens,
        new_tokens=arguments.new_tokens,
        rows=arguments.batch,
        prefill_chunk=PREFILL_CHUNK if arguments.prefill_chunk is None else arguments.prefill_chunk,
    )


def _planner(arguments: argparse.Namespace) -> "Planner":
    device = _device(arguments)
    from longvid_train.adaptation.reading import load_adaptation
    from longvid_train.commands.costing import Planner, planned_model
    from longvid_train.commands.planned_cache import planned_cache

    adaptation = None if arguments.adaptation is None else load_adaptation(arguments.adaptation)
    model = planned_model(arguments.model, adaptation)
    return Planner(
        model=model,
        question=_question(arguments),
        storage=planned_cache(
            arguments.model,
            model.decoder,
            bits=arguments.kv_bits,
            named=arguments.kv,
            chosen=None if adaptation is None else adaptation.cache,
            value_bytes=arguments.weight_bytes,
        ),
        hardware=device,
        value_bytes=arguments.weight_bytes,
    )


def _device(arguments: argparse.Namespace) -> Hardware:
    own = {"tflops": TERA, "bandwidth_gbs": GIGA, "memory_gb": GIGA}
    given = {name: getattr(arguments, name) for name in own}
    for name, value in given.items():
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be greater than 0")
    if None not in given.values():
        return Hardware(
            name="given",
            flops_per_s=given["tflops"] * TERA,
            bytes_per_s=given["bandwidth_gbs"] * GIGA,
            memory_bytes=int(given["memory_gb"] * GIGA),
            source="the command line",
        )
    base = hardware(arguments.device)
    changed = [name for name, value in given.items() if value is not None]
    return Hardware(
        name=base.name,
        flops_per_s=base.flops_per_s if given["tflops"] is None else given["tflops"] * TERA,
        bytes_per_s=base.bytes_per_s if given["bandwidth_gbs"] is None else given["bandwidth_gbs"] * GIGA,
        memory_bytes=base.memory_bytes if given["memory_gb"] is None else int(given["memory_gb"] * GIGA),
        source=base.source + (f"; {', '.join(changed)} from the command line" if changed else ""),
    )


def _capacity(planner: "Planner", as_json: bool) -> int:
    frames = planner.most_frames()
    plan = planner.plan(frames) if frames else None
    if as_json:
        record: dict[str, Any] = {} if plan is None else plan.record()
        print(json.dumps(record | {"max_frames": frames, "device": asdict(planner.hardware)}))
        return 0
    print(
        f"{frames} frames fit on {planner.hardware.name} ({planner.hardware.memory_bytes / GIGA:g} GB, 90 % of it used)"
    )
    if plan is not None:
        _print_plan(plan, planner.hardware)
    return 0


def _training(arguments: argparse.Namespace) -> int:
    device = _device(arguments)
    if arguments.adaptation is not None or arguments.max_frames or arguments.plot is not None:
        raise UserError("--train-stage plans one number of frames: leave out --adaptation, --max-frames and --plot")
    if arguments.frames < 1:
        raise UserError(f"frames is {arguments.frames}; it must be at least 1")
    question = _question(arguments)
    from longvid_train.commands.costing import PlannedTwoToken, planned_model
    from longvid_train.cost.training import training_cost

    model = planned_model(arguments.model, None)
    if not isinstance(model, PlannedTwoToken):
        raise UserError(f"--train-stage is for LLaMA-VID; {arguments.model} has no stages")
    job = model.planned.training_job(
        arguments.train_stage,
        arguments.frames,
        question.text_tokens,
        rows=question.rows,
        gpus=arguments.gpus,
        zero=arguments.zero,
    )
    cost = training_cost(model.decoder, job, device)
    record = asdict(job) | asdict(cost) | {"fits": cost.total_bytes <= device.memory_bytes, "device": asdict(device)}
    if arguments.json:
        print(json.dumps(record))
        return 0
    trained = f"{job.trainable / 1e9:.2f} of {job.parameters / 1e9:.2f} G parameters train"
    print(f"{job.sequence_tokens:,} tokens a row, {trained}")
    parts = ("weight", "gradient", "optimizer", "activation", "total")
    gb = {part: getattr(cost, f"{part}_bytes") / GIGA for part in parts}
    print(
        f"on each of {job.gpus} {device.name}: weights {gb['weight']:.1f} GB, gradients {gb['gradient']:.1f} GB, "
        f"optimizer {gb['optimizer']:.1f} GB, activations {gb['activation']:.1f} GB; in all {gb['total']:.1f} of "
        f"{device.memory_bytes / GIGA:g} GB"
    )
    print(f"{job.flops / TERA:,.0f} TFLOP a micro-batch: {cost.step_ms / 1e3:.1f} s at the peak rate")
    return 0


def _print_plan(plan: "Plan", device: Hardware) -> None:
    cost, room_gb = plan.cost, device.memory_bytes / GIGA
    over = "" if plan.fits_window else "  (OVER the window: extend it, or show fewer frames)"
    print(
        f"{plan.frames:,} frames -> {plan.visual_tokens:,} visual tokens; with text and answer {cost.sequence_tokens:,}"
    )
    print(f"window {plan.window_tokens:,} at scale {plan.scale:.3g}{over}")
    print(
        f"memory: weights {cost.weight_bytes / GIGA:.2f} GB, KV {cost.kv_bytes / GIGA:.2f} GB, activations "
        f"{cost.activation_bytes / GIGA:.2f} GB; peak {cost.total_bytes / GIGA:.2f} of {room_gb:g} GB"
    )
    print(f"work: {cost.ops / TERA:,.0f} T operations, {cost.bytes_moved / GIGA:,.0f} GB moved")
    print(
        f"on {device.name} at least: encode {cost.encode_ms:,.0f} ms, prefill {cost.prefill_ms:,.0f} ms, a token "
        f"{cost.decode_ms:.2f} ms (waits for {cost.decode_bound}), the answer {cost.answer_ms / 1e3:,.1f} s"
    )
    print(f"device: {device.source}")


def _plot(planner: "Planner", frames: int, target: Path) -> None:
    from longvid_train.commands.cost_plot import plot_curve

    step = planner.model.frame_step
    counts = sorted({max(step, round(frames * part / CURVE_STEPS / step) * step) for part in range(1, CURVE_STEPS + 1)})
    plot_curve(planner.curve(counts), planner.hardware, target)
