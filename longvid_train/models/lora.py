"""Low-rank adapters (LoRA, arXiv 2106.09685) in any transformers model, through peft, in place.

The model keeps its class: a targeted ``nn.Linear`` becomes peft's ``lora.Linear`` around it. Modules that train in full
beside the adapters are what peft calls ``modules_to_save``; here they train in place instead of as a second copy, and
are written under the names peft gives them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from longvid_train.errors import UserError
from longvid_train.files import write_json
from longvid_train.models.adapter import CONFIG_FILE, WEIGHTS_FILE, Adapter

ADAPTER_NAME = "default"
_PREFIX = "base_model.model."
"""What peft puts in front of every name in an adapter file."""


@dataclass(frozen=True, kw_only=True)
class LoraShape:
    """Where low-rank matrices stand and how large they are.

    Attributes:
        r: rank.
        alpha: the update ``B A x`` is multiplied by ``alpha / r``.
        dropout: of the input of ``A``, in training.
        target_modules: full paths of the ``nn.Linear`` modules.
        modules_to_save: full paths of the modules that train in full.
    """

    r: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    modules_to_save: tuple[str, ...] = ()

    def peft_config(self, base_model: str | None = None) -> Any:
        """peft's ``LoraConfig`` of the matrices alone; modules that train in full are not its business here."""
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.target_modules),
            base_model_name_or_path=base_model,
        )


def insert_lora(model: nn.Module, shape: LoraShape) -> Any:
    """Wrap the targeted modules of ``model`` in place: ``A`` drawn from torch's generator, ``B`` zero.

    Afterwards the low-rank matrices and the parameters of ``modules_to_save`` require gradients, nothing else.

    Returns:
        peft's ``LoraModel``, whose ``merge_and_unload`` gives the plain model back.
    """
    tuner = LoraModel(model, shape.peft_config(), ADAPTER_NAME)
    for path in shape.modules_to_save:
        model.get_submodule(path).requires_grad_(True)
    return tuner


def adapter_tensors(model: nn.Module, modules_to_save: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return everything an adapter file holds, by its name there; the tensors share memory with the model."""
    lora = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    whole = {
        f"{path}.{name}": value
        for path in modules_to_save
        for name, value in model.get_submodule(path).state_dict().items()
    }
    return {_PREFIX + name: value for name, value in {**lora, **whole}.items()}


@dataclass(frozen=True)
class LoraExport:
    """Writes the adapter of a trained model in peft's format.

    Attributes:
        model: has LoRA in it.
        shape: of the LoRA.
        base_model: what peft's config names as ``base_model_name_or_path``.
    """

    model: nn.Module
    shape: LoraShape
    base_model: str

    def save_pretrained(self, folder: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` into ``folder``."""
        values = self.shape.peft_config(self.base_model).to_dict()
        values |= {
            "peft_type": values["peft_type"].value,
            "inference_mode": True,
            "target_modules": sorted(self.shape.target_modules),
            "modules_to_save": sorted(self.shape.modules_to_save) or None,
        }
        write_json(folder / CONFIG_FILE, values)
        tensors = adapter_tensors(self.model, self.shape.modules_to_save)
        # Cloned: tied parameters stand twice, and safetensors refuses shared memory.
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
            folder / WEIGHTS_FILE,
            metadata={"format": "pt"},
        )


def read_shape(adapter: Adapter) -> LoraShape:
    """Read peft's ``adapter_config.json``.

    Raises:
        UserError: it is broken or describes another method than plain LoRA.
    """
    path = adapter.folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["peft_type"] != "LORA":
            raise UserError(f"{path}: peft_type is '{values['peft_type']}'; only LORA is read here")
        return LoraShape(
            r=int(values["r"]),
            alpha=float(values["lora_alpha"]),
            dropout=float(values["lora_dropout"]),
            target_modules=tuple(values["target_modules"]),
            modules_to_save=tuple(values["modules_to_save"] or ()),
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not peft's LoRA config ({error!r}); export the adapter again") from error


def apply_adapter(model: nn.Module, adapter: Adapter) -> Any:
    """Put a saved adapter into its base model, in place.

    Returns:
        peft's ``LoraModel``, whose ``merge_and_unload`` gives the plain model back.

    Raises:
        UserError: a file is broken, or its tensors are not exactly those that the config describes for this model.
    """
    shape, path = read_shape(adapter), adapter.folder / WEIGHTS_FILE
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    lost = [name for name in shape.target_modules if name not in linear]
    lost += [name for name in shape.modules_to_save if name not in dict(model.named_modules())]
    if lost:
        raise UserError(f"{adapter.folder}: the base model has no module '{lost[0]}'; name the right one with --model")
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the adapter again") from error
    tuner = insert_lora(model, shape)
    wanted = adapter_tensors(model, shape.modules_to_save)
    for problem in _misfits(stored, wanted):
        raise UserError(f"{path}: {problem}; its config and weights do not belong together, export the adapter again")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(stored[name])
    model.requires_grad_(False)
    model.eval()
    return tuner


def _misfits(stored: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> Iterator[str]:
    for name in sorted(wanted.keys() - stored.keys()):
        yield f"lacks {name}"
    for name in sorted(stored.keys() - wanted.keys()):
        yield f"has {name} left over"
    for name in sorted(wanted):
        if stored[name].shape != wanted[name].shape:
            yield f"{name} has shape {tuple(stored[name].shape)}, not {tuple(wanted[name].shape)}"
