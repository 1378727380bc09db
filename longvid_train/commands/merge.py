"""Merge an adapter into its base model: the folder this writes is a plain LLaMA-VID for ask, fit and transformers.

The base model is the one in the adapter's record; its weights are checked to be those the adapter was trained on. The
merged model keeps the base's dtype, and the template, content grids and window of the adapter's training.

examples:
  longvid merge runs/stage2_lora/adapter --out runs/stage2_lora/model
  longvid merge adapter --model models/llama-vid-7b --out models/llama-vid-7b-merged
"""

import argparse
from pathlib import Path

from longvid_train.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid merge``."""
    add = parser.add_argument
    add("adapter", type=Path, metavar="ADAPTER", help="the adapter/ folder of a run that trained LoRA")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write: model and processor")
    add("--model", type=Path, metavar="FOLDER", help="base model (the one in the adapter's record)")


def run(arguments: argparse.Namespace) -> int:
    """Write the merged folder and print its size in parameters."""
    if arguments.out.exists():
        raise UserError(f"{arguments.out}: already exists; choose another --out or delete it")
    import torch
    import transformers

    from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidProcessor
    from longvid_train.models.llama_vid.adapted import load_adapted, read_llama_vid_adapter
    from longvid_train.training.checkpoint import save_folder

    transformers.utils.logging.disable_progress_bar()
    adapter = read_llama_vid_adapter(arguments.adapter)
    base = adapter.base_folder(arguments.model)
    processor = LlamaVidProcessor.from_pretrained(adapter.folder)
    stored = LlamaVidConfig.from_pretrained(base, local_files_only=True).dtype or torch.float32
    # The sums are made in float32 and rounded once.
    model = load_adapted(base, adapter, dtype=torch.float32, merged=True).to(stored)
    save_folder(arguments.out, model, processor)
    print(f"{arguments.out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    return 0
