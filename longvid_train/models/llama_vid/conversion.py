"""Writing the folder of a planned conversion: whole or not at all, with one output shard in memory."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from longvid_train.errors import UserError
from longvid_train.files import atomic_folder, write_json
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.conversion_plan import (
    FRESH_PARTS,
    POSITIONS,
    ConversionOptions,
    ConversionPlan,
)
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration
from longvid_train.models.llama_vid.processing import LlamaVidProcessor
from longvid_train.models.llama_vid.public_weights import WeightReader
from longvid_train.models.llama_vid.vision_tower import resize_position_embedding


def convert(
    plan: ConversionPlan,
    out: Path,
    reader: WeightReader,
    options: ConversionOptions,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompt_tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """Write the folder ``out``: it is whole, or it does not exist.

    Returns:
        Names of the weight files.

    Raises:
        UserError: ``out`` exists, a tokenizer does not fit the model, or the disk is too small.
    """
    _check_out(out)
    _check_tokenizers(plan.config, tokenizer, prompt_tokenizer)
    dtypes = {name: _dtype(plan, name, options) for name in plan.shapes}
    _check_disk(out, plan, dtypes)
    processor = LlamaVidProcessor.for_model(plan.config, tokenizer, prompt_tokenizer).trained_with(
        template=plan.template, image_content_grid=plan.content_grid, video_content_grid=plan.content_grid
    )
    plan.config.dtype = dtypes["language_model.lm_head.weight"]
    plan.config.architectures = [LlamaVidForConditionalGeneration.__name__]
    with atomic_folder(out) as folder:
        files = _write_weights(plan, folder, reader, dtypes, options)
        plan.config.save_pretrained(folder)
        generation_config(plan.config).save_pretrained(folder)
        processor.save_pretrained(folder)
    return files


def generation_config(config: LlamaVidConfig) -> GenerationConfig:
    """Only the special tokens: Vicuna's own sampling settings are not a property of this model."""
    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )


def _dtype(plan: ConversionPlan, name: str, options: ConversionOptions) -> torch.dtype:
    if options.dtype is not None:
        return options.dtype
    return torch.float32 if name not in plan.parts else next(iter(plan.parts[name].values())).dtype


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; choose another --out or delete it")


def _check_tokenizers(
    config: LlamaVidConfig, tokenizer: PreTrainedTokenizerBase, prompt_tokenizer: PreTrainedTokenizerBase
) -> None:
    for what, given, rows in (
        ("language model's tokenizer", tokenizer, config.text_config.vocab_size),
        ("prompt tokenizer", prompt_tokenizer, config.text_decoder_config.vocab_size),
    ):
        if len(given) > rows:
            raise UserError(f"the {what} has {len(given)} tokens but the weights embed {rows}; give the model's own")


def _check_disk(out: Path, plan: ConversionPlan, dtypes: Mapping[str, torch.dtype]) -> None:
    """Refuse before writing when the weights cannot fit on the disk.

    Raises:
        UserError: naming the bytes needed and free.
    """
    needed = sum(torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in plan.shapes.items())
    existing = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{out}: the weights take {needed:,} bytes and {existing} has {free:,} free; choose another --out"
        )


def _write_weights(
    plan: ConversionPlan,
    folder: Path,
    reader: WeightReader,
    dtypes: Mapping[str, torch.dtype],
    options: ConversionOptions,
) -> list[str]:
    """Write the weights in shards of at most ``max_shard_bytes``, holding one at a time."""
    fresh = _fresh_tensors(plan, options.seed)
    order = sorted(plan.shapes, key=lambda name: _source_file(plan, name))
    skeleton = {name: torch.empty(plan.shapes[name], dtype=dtypes[name], device="meta") for name in order}
    split = split_torch_state_dict_into_shards(skeleton, max_shard_size=options.max_shard_bytes)
    for file, names in split.filename_to_tensors.items():
        shard = {}
        for name in names:
            value = fresh[name] if name in fresh else _assemble(plan, name, reader)
            shard[name] = value.to(dtypes[name]).contiguous()
        save_file(shard, folder / file, metadata={"format": "pt"})
        del shard
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    return list(split.filename_to_tensors)


def _source_file(plan: ConversionPlan, name: str) -> str:
    """The file a parameter is read from: sorted by it, each file is opened about once."""
    slots = plan.parts.get(name)
    return "" if slots is None else str(next(iter(slots.values())).file)


def _assemble(plan: ConversionPlan, name: str, reader: WeightReader) -> torch.Tensor:
    slots = plan.parts[name]
    if "whole" not in slots:
        query, value = reader.read(slots["query_bias"]), reader.read(slots["value_bias"])
        return torch.cat([query, torch.zeros_like(query), value])
    tensor = reader.read(slots["whole"])
    return resize_position_embedding(tensor, plan.config.visual_grid) if name in POSITIONS else tensor


def _fresh_tensors(plan: ConversionPlan, seed: int) -> dict[str, torch.Tensor]:
    """Draw the parameters that no source has, as transformers initialises them."""
    if not plan.fresh:
        return {}
    with torch.device("meta"):
        model = LlamaVidForConditionalGeneration(plan.config)
    drawn: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path in FRESH_PARTS:
            if any(name.startswith(f"{path}.") for name in plan.fresh):
                part: nn.Module = model.get_submodule(path).to_empty(device="cpu")
                part.apply(model._init_weights)
                drawn |= {f"{path}.{name}": value for name, value in part.state_dict().items()}
    return drawn
