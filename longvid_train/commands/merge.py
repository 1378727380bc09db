"""Merge an adapter into its base model: the folder this writes is a plain model for ask, fit and transformers.

The base model is the one in the adapter's record; its weights are checked to be those the adapter was trained on. The
merged model keeps the base's dtype. A LLaMA-VID keeps the template, content grids and window of the adapter's training.
A backbone gets adaptation.yaml beside it, for ask --adaptation. Where the adaptation fixes the scale of its window
(`scale` or `target_tokens`), the window is exported with the model instead, as `longrope`: plain transformers then
computes the extended model.

examples:
  longvid merge runs/stage2_lora/adapter --out runs/stage2_lora/model
  longvid merge adapter --model models/llama-vid-7b --out models/llama-vid-7b-merged
  longvid merge runs/lora/onevision_7b/adapter --out runs/lora/onevision_7b/model
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvid_train.errors import UserError

if TYPE_CHECKING:
    from longvid_train.models.adapter import Adapter
    from longvid_train.models.backbones.adapted import BackboneAdapter
    from longvid_train.rope.extension import Extension


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
    import transformers

    from longvid_train.models.backbones.adapted import BackboneAdapter, read_any_adapter

    transformers.utils.logging.disable_progress_bar()
    adapter = read_any_adapter(arguments.adapter)
    if isinstance(adapter, BackboneAdapter):
        model = _merge_backbone(adapter, arguments.model, arguments.out)
    else:
        model = _merge_llama_vid(adapter, arguments.model, arguments.out)
    print(f"{arguments.out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    return 0


def _merge_llama_vid(adapter: "Adapter", given: Path | None, out: Path) -> Any:
    import torch

    from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidProcessor
    from longvid_train.models.llama_vid.adapted import load_adapted
    from longvid_train.training.checkpoint import save_folder

    base = adapter.base_folder(given)
    processor = LlamaVidProcessor.from_pretrained(adapter.folder)
    stored = LlamaVidConfig.from_pretrained(base, local_files_only=True).dtype or torch.float32
    # The sums are made in float32 and rounded once.
    model = load_adapted(base, adapter, dtype=torch.float32, merged=True).to(stored)
    save_folder(out, model, processor)
    return model


def _merge_backbone(adapter: "BackboneAdapter", given: Path | None, out: Path) -> Any:
    import torch

    from longvid_train.models.backbones.adapted import AdaptationFile, load_adapted_backbone
    from longvid_train.models.backbones.load import read_config
    from longvid_train.rope.extension import prepare
    from longvid_train.rope.scale import TokenCounts
    from longvid_train.rope.unextended import NoWindow
    from longvid_train.training.checkpoint import save_folder
    from longvid_train.training.checkpoint_files import CheckpointFiles

    base = adapter.base_folder(given)
    _, config = read_config(base)
    backbone = load_adapted_backbone(base, adapter, dtype=torch.float32, merged=True)
    model = backbone.model.to(config.dtype or torch.float32)
    window, files = adapter.adaptation.window, CheckpointFiles(base)
    if window.scale is None and window.target_tokens is None:
        save_folder(out, model, files, AdaptationFile(adapter.adaptation))
        return model
    extension = prepare(model, window, counts=TokenCounts(visual=0, total=0), trained=backbone.facts.trained)
    rest = AdaptationFile(replace(adapter.adaptation, window=NoWindow()))
    save_folder(out, _Extended(model, extension), files, rest)
    for line in extension.description:
        print(line)
    return model


@dataclass(frozen=True)
class _Extended:
    """A model that is saved with its window extended."""

    model: Any
    extension: "Extension"

    def save_pretrained(self, folder: Path) -> None:
        """Write it into ``folder``."""
        from longvid_train.rope.export import save_extended

        save_extended(self.model, folder, self.extension)
