"""Scales for vLLM's fp8 KV cache, from the ranges a calibration saw, in the layout vLLM loads.

vLLM keeps keys (rotated) and values as ``round(x / scale)`` in float8 e4m3, whose largest number is 448, with one scale
a layer for keys and one for values: ``scale = largest / 448``. It reads them as tensors ``<layer>.self_attn.k_scale``
and ``v_scale`` beside the weights (`maybe_remap_kv_scale_name` in its ``weight_utils.py`` turns both into
``self_attn.attn.*``) when the config's ``quantization_config`` is of ``compressed-tensors`` with a ``kv_cache_scheme``
(`CompressedTensorsKVCacheMethod`: 8 bits, float, per tensor, symmetric). Ranges are those of all tokens: vLLM's cache
has no windows in full precision. This is another quantization than this package's codes: 8 bits a number.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from longvid_train.errors import UserError
from longvid_train.kvcache.quantizer import LayerLargest

E4M3_LARGEST = float(torch.finfo(torch.float8_e4m3fn).max)
SCALES_FILE = "model-kv-scales.safetensors"
_KEY_PROJECTION = re.compile(r"^(?P<attention>.*\blayers\.(?P<layer>\d+)\.self_attn)\.k_proj\.weight$")
_TOWER = re.compile(r"(^|\.)(vision|image|video)_(model|tower)\.")

QUANTIZATION_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "dense",
    "quantization_status": "frozen",
    "config_groups": {},
    "ignore": [],
    "kv_cache_scheme": {
        "num_bits": 8,
        "type": "float",
        "strategy": "tensor",
        "symmetric": True,
        "dynamic": False,
        "observer": "minmax",
    },
}
"""Of a checkpoint whose weights are not quantized and whose KV cache has static fp8 scales."""


def attention_names(tensor_names: Iterable[str], layers: int) -> list[str]:
    """Names of the language model's attention modules in a checkpoint, by layer.

    Args:
        tensor_names: of the checkpoint.
        layers: of the language model.

    Raises:
        UserError: the checkpoint does not name that many.
    """
    matches = (_KEY_PROJECTION.match(name) for name in tensor_names if not _TOWER.search(name))
    found = {int(match["layer"]): match["attention"] for match in matches if match is not None}
    if sorted(found) != list(range(layers)):
        raise UserError(
            f"the checkpoint has key projections of {len(found)} decoder layers, the quantizer is for {layers}; "
            "name the model it was calibrated for"
        )
    return [found[layer] for layer in range(layers)]


def fp8_scales(largest: Sequence[LayerLargest], attention: Sequence[str]) -> dict[str, torch.Tensor]:
    """``{attention}.k_scale`` and ``.v_scale``, float32 numbers of shape ``(1,)``.

    Args:
        largest: of every layer.
        attention: names of every layer's attention.

    Raises:
        UserError: a layer's keys or values were all zero.
    """
    scales = {}
    for layer, (sizes, name) in enumerate(zip(largest, attention, strict=True)):
        for side, size in (("k", sizes.keys), ("v", sizes.values)):
            if not size > 0:
                raise UserError(f"layer {layer}: the calibration saw no {side} other than zero; calibrate again")
            scales[f"{name}.{side}_scale"] = torch.tensor([size / E4M3_LARGEST])
    return scales
