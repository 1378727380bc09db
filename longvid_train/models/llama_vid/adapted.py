"""A LLaMA-VID with an adapter in it, from the adapter's folder and its base model's."""

from pathlib import Path

import torch

from longvid_train.models.adapter import Adapter
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.loading import load_llama_vid
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration


def load_adapted(
    base: str | Path, adapter: Adapter, *, dtype: torch.dtype | str = "auto", merged: bool = False
) -> LlamaVidForConditionalGeneration:
    """Load a base model with its configuration as in the adapter's training, and put the adapter in.

    Args:
        base: the base model's folder, from ``adapter.base_folder``.
        adapter: the adapter.
        dtype: of the weights in memory; ``"auto"`` keeps the checkpoint's.
        merged: add ``alpha / r * B A`` to the weights, so that a plain model is left. In a 16-bit dtype the sums are
            rounded to it.

    Raises:
        UserError: a folder that is not what it should be, or weights that do not fit.
    """
    # peft takes a second to import: only adapters pay for it.
    from longvid_train.models.lora import apply_adapter

    config = adapter.adapt_config(LlamaVidConfig.from_pretrained(base, local_files_only=True))
    model = load_llama_vid(base, dtype=dtype, config=config)
    tuner = apply_adapter(model, adapter)
    return tuner.merge_and_unload(safe_merge=True) if merged else model
