"""A backbone with an adapter in it, and the adaptation the adapter was trained under."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from longvid_train.adaptation.reading import load_adaptation, write_adaptation
from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.files import write_text
from longvid_train.models.adapter import Adapter, read_adapter
from longvid_train.models.backbones.llama_vid import LlamaVid
from longvid_train.models.backbones.load import MODEL_TYPES, AnyBackbone, load_backbone
from longvid_train.models.backbones.protocol import BackboneFacts

ADAPTATION_FILE = "adaptation.yaml"
"""In an adapter folder, and beside a merged model whose scale depends on the input."""


@dataclass(frozen=True)
class AdaptationFile:
    """Writes an adaptation beside what was trained under it."""

    adaptation: Adaptation

    def save_pretrained(self, folder: Path) -> None:
        """Write ``adaptation.yaml`` into ``folder``."""
        write_text(folder / ADAPTATION_FILE, write_adaptation(self.adaptation))


@dataclass(frozen=True)
class BackboneAdapter:
    """An adapter folder of a backbone, read without weights.

    Attributes:
        adapter: peft's files and the record of the base model.
        adaptation: of the training; inference uses the same.
    """

    adapter: Adapter
    adaptation: Adaptation

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.adapter.folder

    def base_folder(self, given: Path | None = None) -> Path:
        """`Adapter.base_folder`: the base model, checked to be the one the adapter was trained on."""
        return self.adapter.base_folder(given)

    def check_adaptation(self, given: Adaptation, where: str) -> None:
        """Refuse another adaptation than that of the training; what training has not, a cache and a zoom, may be added.

        Args:
            given: the user's.
            where: names its file in the message.

        Raises:
            UserError: they differ; naming both.
        """
        if replace(given, cache=None, zoom=None) != self.adaptation:
            raise UserError(
                f"{where} is not the adaptation that {self.folder} was trained under "
                f"({self.folder / ADAPTATION_FILE}); leave --adaptation out, the adapter brings its own"
            )

    def check_facts(self, facts: BackboneFacts) -> None:
        """Refuse an adaptation that is for other backbones than the base model.

        Raises:
            UserError: naming both.
        """
        try:
            self.adaptation.check_backbone(facts.model_type)
        except UserError as error:
            raise UserError(f"{self.folder / ADAPTATION_FILE}: {error}") from None


def read_backbone_adapter(folder: str | Path) -> BackboneAdapter:
    """Read an adapter folder that ``fit`` wrote for a backbone; no weights are read.

    Raises:
        UserError: no adapter there, one of another architecture, or a broken or missing file.
    """
    adapter = read_adapter(folder, *MODEL_TYPES)
    path = adapter.folder / ADAPTATION_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; name the adapter/ folder of a run that trained a backbone's LoRA")
    return BackboneAdapter(adapter, load_adaptation(path))


def read_any_adapter(folder: str | Path) -> Adapter | BackboneAdapter:
    """Read an adapter folder of a LLaMA-VID or of a backbone; no weights are read.

    Raises:
        UserError: as `read_backbone_adapter`.
    """
    adapter = read_adapter(folder, *MODEL_TYPES)
    llama_vid = adapter.record.architecture == LlamaVid.model_class.config_class.model_type
    return adapter if llama_vid else read_backbone_adapter(folder)


def load_adapted_backbone(
    base: str | Path,
    adapter: BackboneAdapter,
    *,
    dtype: torch.dtype | str = "auto",
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    merged: bool = False,
) -> AnyBackbone:
    """Load a base model and put the adapter in; the window is the caller's to install, by ``adapter.adaptation``.

    Args:
        base: the base model's folder, from ``adapter.base_folder``.
        adapter: the adapter.
        dtype: of the weights in memory; ``"auto"`` keeps the checkpoint's.
        device_map: transformers' ``device_map``.
        attn_implementation: transformers' attention function for every part.
        merged: add ``alpha / r * B A`` to the weights, so that a plain model is left. In a 16-bit dtype the sums are
            rounded to it.

    Raises:
        UserError: a folder that is not what it should be, weights that do not fit, or an adaptation for others.
    """
    # peft takes a second to import: only adapters pay for it.
    from longvid_train.models.lora import apply_adapter

    backbone = load_backbone(base, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation)
    adapter.check_facts(backbone.facts)
    tuner = apply_adapter(backbone.model, adapter.adapter)
    return type(backbone)(tuner.merge_and_unload(safe_merge=True)) if merged else backbone
