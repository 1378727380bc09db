"""Convert public LLaMA-VID weights into a folder that `longvid ask` and `longvid fit` read.

A whole checkpoint needs --checkpoint alone. A stage-1 checkpoint (mm_projector.bin) also needs the language model and
the tower it was trained with; without --checkpoint the projections start fresh, as before stage 1. Pickles are loaded
weights-only. Missing and unexpected keys are errors that list them. docs/public_checkpoints.md walks through it.

examples:
  longvid convert --out models/7b-video --checkpoint llama-vid-7b-full-224-video-fps-1 --prompt-tokenizer bert
  longvid convert --out models/7b-stage1 --checkpoint pretrain/mm_projector.bin --language vicuna-7b-v1.5 \\
      --tower eva_vit_g.pth --prompt-tokenizer bert-base-uncased
  longvid convert --out models/7b-start --language vicuna-7b-v1.5 --tower eva_vit_g.pth \\
      --qformer instruct_blip_vicuna7b_trimmed.pth --prompt-tokenizer bert-base-uncased
"""

import argparse
from pathlib import Path
from typing import Any

from longvid_train.errors import UserError

DTYPES = ("keep", "float32", "bfloat16", "float16")
GIB = 1024**3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid convert``."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write: model and processor")
    add("--checkpoint", type=Path, help="folder of a public model, or its mm_projector.bin (stage 1)")
    add("--language", type=Path, help="Llama folder (Vicuna v1.5), unless the checkpoint holds the language model")
    add("--tower", type=Path, help="eva_vit_g.pth or a CLIP folder, unless the checkpoint holds the tower")
    add("--qformer", type=Path, help="instruct_blip_vicuna7b_trimmed.pth, without --checkpoint")
    add("--prompt-tokenizer", type=Path, required=True, help="folder of bert-base-uncased's tokenizer")
    add("--tokenizer", type=Path, help="language model's tokenizer folder (default: beside its weights)")
    add("--image-size", type=int, help="pixels a side (default: the checkpoint's own, else the tower's)")
    add("--dtype", choices=DTYPES, default="keep", help="of the written weights; keep rounds nothing")
    add("--max-shard-gib", type=float, default=2.0, help="largest weight file in GiB, and the memory needed")
    add("--seed", type=int, default=0, help="of the parts that start fresh")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and print what came from where."""
    if not arguments.max_shard_gib > 0:
        raise UserError(f"--max-shard-gib is {arguments.max_shard_gib}; it must be greater than 0")
    if arguments.image_size is not None and arguments.image_size < 1:
        raise UserError(f"--image-size is {arguments.image_size}; it must be a number of pixels, at least 1")
    import torch

    from longvid_train.models.llama_vid.conversion import convert
    from longvid_train.models.llama_vid.conversion_plan import ConversionOptions, PublicSources, plan_conversion
    from longvid_train.models.llama_vid.public_weights import WeightReader
    from longvid_train.models.llama_vid.tokenizers import load_tokenizer

    options = ConversionOptions(
        image_size=arguments.image_size,
        dtype=None if arguments.dtype == "keep" else getattr(torch, arguments.dtype),
        seed=arguments.seed,
        max_shard_bytes=int(arguments.max_shard_gib * GIB),
    )
    sources = PublicSources(
        checkpoint=arguments.checkpoint,
        language=arguments.language,
        tower=arguments.tower,
        qformer=arguments.qformer,
    )
    reader = WeightReader()
    plan = plan_conversion(sources, options, reader)
    tokenizer = load_tokenizer(arguments.tokenizer or plan.tokenizer_folder)
    prompt_tokenizer = load_tokenizer(arguments.prompt_tokenizer)
    files = convert(plan, arguments.out, reader, options, tokenizer=tokenizer, prompt_tokenizer=prompt_tokenizer)
    _report(arguments.out, plan, files)
    return 0


def _report(out: Path, plan: Any, files: list[str]) -> None:
    from longvid_train.models.llama_vid.public_names import compact

    config = plan.config
    print(f"{out}: {len(plan.parts)} weights in {len(files)} files, {config.image_size} pixels a side")
    print(
        f"rope: {dict(config.text_config.rope_parameters)}, window {config.text_config.max_position_embeddings} tokens"
    )
    if plan.left_behind:
        print(f"left behind: {compact(plan.left_behind)}")
    print(f"newly initialised: {compact(plan.fresh) or 'nothing'}")
