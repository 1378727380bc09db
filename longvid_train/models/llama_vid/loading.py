"""Reading a LLaMA-VID folder from disk, with one clear line when it is not one. Nothing is ever downloaded."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from longvid_train.errors import UserError
from longvid_train.models.adapter import refuse_adapter
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration


def load_llama_vid(
    folder: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    config: LlamaVidConfig | None = None,
) -> LlamaVidForConditionalGeneration:
    """Load a model saved by ``save_pretrained``, in eval mode.

    Args:
        folder: a local folder.
        dtype: of the weights in memory; ``"auto"`` keeps the checkpoint's.
        device_map: transformers' ``device_map``.
        attn_implementation: transformers' attention function for every part.
        config: instead of the folder's own, e.g. with a stretched window.

    Raises:
        UserError: no such folder, another architecture, or weights that do not fit the configuration.
    """
    read_model_type(Path(folder), LlamaVidConfig.model_type)
    options: dict[str, Any] = {} if config is None else {"config": config}
    return load_whole(
        LlamaVidForConditionalGeneration,
        Path(folder),
        dtype=dtype,
        device_map=device_map,
        attn_implementation=attn_implementation,
        **options,
    )


def llama_vid_skeleton(folder: str | Path) -> LlamaVidForConditionalGeneration:
    """Build the folder's architecture on torch's meta device: names and shapes of all parameters, no memory.

    Raises:
        UserError: no such folder, or another architecture.
    """
    read_model_type(Path(folder), LlamaVidConfig.model_type)
    config = LlamaVidConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return LlamaVidForConditionalGeneration(config)


def read_model_type(folder: Path, *expected: str) -> str:
    """Return the ``model_type`` of a folder's ``config.json`` after checking that it is an expected one.

    Raises:
        UserError: the folder or its configuration is missing or broken, or of another architecture.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one written by save_pretrained")
    refuse_adapter(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a folder written by save_pretrained")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); save the model again") from error
    found = values.get("model_type") if isinstance(values, dict) else None
    if found not in expected:
        wanted = "' or '".join(expected)
        raise UserError(f"{folder} holds a '{found}' model, not '{wanted}'; give a folder of that architecture")
    return str(found)


def load_whole(model_class: type[PreTrainedModel], folder: Path | str, **options: Any) -> Any:
    """``model_class.from_pretrained``, refusing weights that are missing, left over or misshapen.

    Args:
        model_class: what to load.
        folder: a local folder (``Path``: nothing is downloaded) or a hub id (``str``).
        **options: of ``from_pretrained``.

    Raises:
        UserError: naming the first weights that do not fit, or the file that cannot be read.
    """
    try:
        model, report = model_class.from_pretrained(
            folder, local_files_only=isinstance(folder, Path), output_loading_info=True, **options
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder}: its weights cannot be read ({_first_line(error)}); save the model again") from error
    for kind, rule in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has left over"),
        ("mismatched_keys", "misshapes"),
    ):
        names = sorted(str(name) for name in report[kind])
        if names:
            raise UserError(
                f"{folder}: the checkpoint {rule} {len(names)} of the model's weights, first {names[0]}; "
                "its config.json and weights do not belong together"
            )
    return model.eval()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
