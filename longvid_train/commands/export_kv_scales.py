"""Write a model folder that vLLM serves with a calibrated fp8 KV cache.

The folder holds links to the model's files, the scales as one more safetensors file, an index that names it, and a
config.json whose quantization_config says that the KV cache, and nothing else, has static fp8 scales. They come from
the ranges of a quantizer that `longvid calibrate` wrote; its own codes are not exported, vLLM has no such cache.

examples:
  longvid export-kv-scales quantizers/onevision_7b --model models/llava-onevision-7b --out models/onevision-7b-fp8-kv
  vllm serve models/onevision-7b-fp8-kv --kv-cache-dtype fp8
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvid_train.errors import UserError

if TYPE_CHECKING:
    from longvid_train.kvcache.quantizer import LayerLargest

INDEX = "model.safetensors.index.json"
LABEL = "kv_scales.json"
_WRITTEN = (INDEX, LABEL, "config.json")
_UNKNOWN_TO_VLLM = ("llama_vid",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid export-kv-scales``."""
    add = parser.add_argument
    add("quantizer", type=Path, metavar="QUANTIZER", help="folder that `longvid calibrate` wrote")
    add("--model", type=Path, required=True, metavar="FOLDER", help="the model it was calibrated for, in safetensors")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")


def run(arguments: argparse.Namespace) -> int:
    """Check everything, then write the folder whole or not at all."""
    if arguments.out.exists():
        raise UserError(f"{arguments.out}: already exists; choose another --out or delete it")
    if not arguments.model.is_dir():
        raise UserError(f"{arguments.model} is no folder; download the model and name its folder")
    from safetensors.torch import save_file

    from longvid_train.files import atomic_folder, write_json
    from longvid_train.kvcache.export_vllm import QUANTIZATION_CONFIG, SCALES_FILE, attention_names, fp8_scales

    config, files = _plain_config(arguments.model), _weight_files(arguments.model)
    largest, label = _calibration(arguments.quantizer, arguments.model)
    weights = _weight_map(files)
    scales = fp8_scales(largest, attention_names(weights, len(largest)))
    total = sum(file.stat().st_size for file in files)
    with atomic_folder(arguments.out) as folder:
        for file in sorted(arguments.model.iterdir()):
            if file.is_file() and file.name not in _WRITTEN:
                (folder / file.name).symlink_to(file.resolve())
        save_file(scales, folder / SCALES_FILE, metadata={"format": "pt"})
        (folder / SCALES_FILE).chmod(0o644)
        index = {"metadata": {"total_size": total}, "weight_map": weights | dict.fromkeys(scales, SCALES_FILE)}
        write_json(folder / INDEX, index)
        write_json(folder / "config.json", config | {"quantization_config": QUANTIZATION_CONFIG})
        write_json(folder / LABEL, label | {"scales": {name: scale.item() for name, scale in scales.items()}})
    print(f"{arguments.out}: fp8 (e4m3) scales of keys and values of {len(largest)} layers; serve it with")
    print(f"  vllm serve {arguments.out} --kv-cache-dtype fp8")
    return 0


def _plain_config(model: Path) -> dict[str, Any]:
    """config.json of a model that vLLM may load."""
    try:
        config = dict(json.loads((model / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: its config.json cannot be read ({error}); name a transformers folder") from error
    if config.get("model_type") in _UNKNOWN_TO_VLLM:
        raise UserError(f"{model} is a '{config['model_type']}', which vLLM has no class for; name another model")
    if "quantization_config" in config:
        raise UserError(f"{model} has a quantization_config already; export the model before it was quantized")
    return config


def _weight_files(model: Path) -> list[Path]:
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise UserError(f"{model}: holds no *.safetensors; name a folder that save_pretrained wrote")
    return files


def _calibration(folder: Path, model: Path) -> "tuple[tuple[LayerLargest, ...], dict[str, Any]]":
    """Ranges of the quantizer, which must be the model's, and what people should know of them."""
    from longvid_train.kvcache.checkpoint import load_quantizer
    from longvid_train.kvcache.quantizer import cache_shape
    from longvid_train.models.backbones.load import read_config
    from longvid_train.models.identity import model_identity

    _, config = read_config(str(model))
    identity = model_identity(model)
    quantizer, record = load_quantizer(folder, model=identity, shape=cache_shape(config), rotation=None)
    if not quantizer.largest:
        raise UserError(f"{folder}: made without calibration, so no ranges are known; calibrate, e.g. preset static8")
    label = {
        "what": "static scales of vLLM's fp8 (e4m3) KV cache: largest calibrated number / 448, one a layer for keys "
        "(rotated) and one for values",
        "not": "the codes of longvid-train: vLLM keeps 8 bits a number and no windows in full precision",
        "rotary": "keys were observed under the window of this adaptation; serve the model with the same one",
        "adaptation": record.adaptation,
        "model": asdict(record.model),
        "calibration": None if record.calibration is None else asdict(record.calibration),
    }
    return quantizer.largest, label


def _weight_map(files: list[Path]) -> dict[str, str]:
    """The file of every tensor by name, from the headers."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file.name)
        except SafetensorError as error:
            raise UserError(f"{file}: cannot be read ({error}); copy it again") from error
    return found
