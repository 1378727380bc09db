"""What runs a calibration, beside its rows, its scheme and its gate: the keys of ``model`` in a config."""

from dataclasses import dataclass

import torch

from longvid_train.errors import UserError
from longvid_train.generate.chat import resolve_dtype
from longvid_train.kvcache.statistics import LEAST_TOKENS
from longvid_train.models.prefill import PREFILL_CHUNK
from longvid_train.training.threads import check_threads


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model and how its statistics are taken.

    Attributes:
        model: folder of a LLaMA-VID or a backbone, or a hub id.
        dtype: of the weights in memory: ``auto`` (the checkpoint's), ``float32``, ``bfloat16`` or ``float16``.
        sample_tokens: tokens kept for fitting, from all layers.
        save_every: rows of a process between saves of its statistics; a killed run loses at most these.
        prefill_chunk: positions of a prompt that pass the decoder at once in the gate.
        torch_threads: CPU threads of each process; 0 keeps torch's own choice. The same number gives the same file.
    """

    model: str
    dtype: str = "auto"
    sample_tokens: int = 1024
    save_every: int = 16
    prefill_chunk: int = PREFILL_CHUNK
    torch_threads: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name, least in (("sample_tokens", LEAST_TOKENS), ("save_every", 1), ("prefill_chunk", 1)):
            if getattr(self, name) < least:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be at least {least}")
        check_threads(self.torch_threads)
        resolve_dtype(self.dtype)

    def dtype_of_weights(self) -> torch.dtype | str:
        """As `load_engine` takes it."""
        return resolve_dtype(self.dtype)
