"""Reading a LLaMA-VID folder for training and writing one after it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from longvid_train.errors import UserError
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.loading import load_llama_vid, read_model_type
from longvid_train.models.llama_vid.processing import LlamaVidProcessor
from longvid_train.training.staging import staging_folder

BASE_KEY = "longvid_base_fingerprint"


def check_llama_vid_folder(folder: str | Path) -> None:
    """Check, without loading weights, that ``folder`` holds a LLaMA-VID checkpoint.

    Raises:
        UserError: there is no such folder, no readable ``config.json``, another architecture or no weights.
    """
    path = Path(folder)
    read_model_type(path, LlamaVidConfig.model_type)
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{path}: no *.safetensors weights; name a complete LLaMA-VID checkpoint")


def save_folder(target: Path, *parts: Any) -> None:
    """Write ``parts`` (anything with ``save_pretrained``) into the folder ``target``, which is whole at any moment or
    absent.

    The parts go to a temporary neighbour; an older ``target`` is moved aside, replaced and only then removed. What a
    killed process left beside ``target`` is removed too.
    """
    with staging_folder(target) as staging:
        new = staging / "new"
        new.mkdir()
        for part in parts:
            part.save_pretrained(new)
        if target.exists():
            target.rename(staging / "old")
        new.rename(target)


def load_for_training(folder: str | Path) -> tuple[Any, Any]:
    """Load ``(model, processor)`` in float32.

    Raises:
        UserError: see ``check_llama_vid_folder``.
    """
    return load_llama_vid(folder, dtype=torch.float32), LlamaVidProcessor.from_pretrained(folder)


def keep_trained(checkpoint: dict[str, Any], module: nn.Module, base_fingerprint: str) -> None:
    """Drop the frozen parameters from a Lightning checkpoint and note the fingerprint of the model they come from."""
    frozen = _frozen_names(module)
    checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name not in frozen}
    checkpoint[BASE_KEY] = base_fingerprint


def check_base(checkpoint: dict[str, Any], base_fingerprint: str) -> None:
    """Check that a checkpoint's run started from the model that is named now.

    Raises:
        UserError: it did not: the frozen parameters would be others.
    """
    if checkpoint.get(BASE_KEY, base_fingerprint) != base_fingerprint:
        raise UserError(
            "the checkpoint's run started from a model with other weights than model.model names now; "
            "name that model again, or start a new run without --ckpt_path"
        )


def restore_frozen(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Undo `keep_trained`: the frozen parameters are those that ``module`` has now.

    Raises:
        UserError: the checkpoint is of a run that trained other parameters.
    """
    state, present = checkpoint["state_dict"], module.state_dict()
    frozen = _frozen_names(module)
    differing = sorted((state.keys() - present.keys()) | (present.keys() - frozen - state.keys()))
    if differing:
        raise UserError(
            f"the checkpoint is of a run that trained other parameters ({len(differing)} differ, first "
            f"{differing[0]}); use that run's model.stage and model.lora, or start a new run without --ckpt_path"
        )
    checkpoint["state_dict"] = {**{name: present[name] for name in frozen}, **state}


def _frozen_names(module: nn.Module) -> set[str]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {name for name, value in parameters if not value.requires_grad}


def check_not_stretched(model: Any, factor: float) -> None:
    """Refuse to stretch a window twice.

    Raises:
        UserError: the checkpoint is already stretched.
    """
    found = model.config.text_config.rope_parameters.get("rope_type", "default")
    if found != "default":
        raise UserError(
            f"rope_scaling {factor}: the checkpoint already has rope_type '{found}' "
            f"({model.config.text_config.rope_parameters}); set rope_scaling to 1, or start from a checkpoint that is "
            "not stretched"
        )


def stretch_window(model: Any, factor: float) -> None:
    """Interpolate rotary positions linearly by ``factor`` and widen ``max_position_embeddings`` by it (paper, stage 3).

    Both are written into the model's text config, so the saved checkpoint carries them; the rotary buffers are rebuilt.
    """
    config = model.config.text_config
    config.rope_parameters = {**config.rope_parameters, "rope_type": "linear", "factor": float(factor)}
    config.max_position_embeddings = round(config.max_position_embeddings * factor)
    decoder = model.language_model.model
    decoder.rotary_emb = type(decoder.rotary_emb)(config).to(decoder.rotary_emb.inv_freq.device)
