"""An adapter folder: peft's own two files, and a record of the model it belongs to.

``adapter_model.safetensors`` and ``adapter_config.json`` are peft's format; ``PeftModel.from_pretrained`` reads them.
``adapter_record.json`` is `AdapterRecord`: the base model, its fingerprint, and what the adapter's training changed in
the language model's configuration (a stretched window). The folder holds no weight of the base model that did not
train, and a processor beside it (template and content grids of the training).
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from longvid_train.errors import UserError
from longvid_train.files import write_json
from longvid_train.models.fingerprint import fingerprint

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
RECORD_FILE = "adapter_record.json"

_ADAPTED_FIELDS = ("rope_parameters", "max_position_embeddings")


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """What an adapter needs beside its weights.

    Attributes:
        architecture: ``model_type`` of the base model.
        base_model: the base model's folder, absolute.
        base_model_from_here: the same folder relative to the adapter's, for a tree of folders that was moved.
        base_fingerprint: see ``longvid_train.models.fingerprint``.
        text_config: fields of the language model's configuration as they were in training.
    """

    architecture: str
    base_model: str
    base_model_from_here: str
    base_fingerprint: str
    text_config: dict[str, Any]

    @classmethod
    def of(cls, config: Any, *, base: Path, base_fingerprint: str, folder: Path) -> "AdapterRecord":
        """Record a model with ``config`` trained from ``base`` whose adapter goes to ``folder``."""
        here = os.path.relpath(base.resolve(), folder.resolve())
        return cls(
            architecture=config.model_type,
            base_model=str(base.resolve()),
            base_model_from_here=here,
            base_fingerprint=base_fingerprint,
            text_config={name: getattr(config.text_config, name) for name in _ADAPTED_FIELDS},
        )

    def save_pretrained(self, folder: Path) -> None:
        """Write the record into ``folder``."""
        write_json(folder / RECORD_FILE, asdict(self))


@dataclass(frozen=True)
class Adapter:
    """An adapter folder whose files are there and whose record is whole."""

    folder: Path
    record: AdapterRecord

    def base_folder(self, given: Path | None = None) -> Path:
        """Return the base model's folder, checked to be the one the adapter was trained on.

        Args:
            given: the user's choice; without it, the folder in the record.

        Raises:
            UserError: it is not there, or it is another model.
        """
        places = [self.folder / self.record.base_model_from_here, Path(self.record.base_model)]
        base = given if given is not None else next((place for place in places if place.is_dir()), None)
        if base is None:
            raise UserError(
                f"{self.folder}: its base model {self.record.base_model} is not there; name the folder with --model"
            )
        if fingerprint(base) != self.record.base_fingerprint:
            raise UserError(
                f"{base} is not the model that {self.folder} was trained on: its weights or its config.json differ; "
                f"name the right folder with --model (it was {self.record.base_model})"
            )
        return base.resolve() if given is None else given

    def adapt_config(self, config: Any) -> Any:
        """Set in a base model's configuration what training changed, and return it."""
        for name, value in self.record.text_config.items():
            setattr(config.text_config, name, value)
        return config


def read_adapter(folder: str | Path, *architectures: str) -> Adapter:
    """Read and check an adapter folder; no weights are read.

    Args:
        folder: written by ``fit`` with ``lora``.
        *architectures: the ``model_type`` names that the caller can use.

    Raises:
        UserError: no adapter there, a file is missing or broken, or an adapter of another architecture.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name the adapter/ folder of a run that trained LoRA")
    if not (path / CONFIG_FILE).is_file() and (path / "config.json").is_file():
        raise UserError(f"{path} holds a whole model, not an adapter; name it with --model")
    for name in (CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE):
        if not (path / name).is_file():
            raise UserError(f"{path / name} does not exist; name the adapter/ folder of a run that trained LoRA")
    record = _read_record(path / RECORD_FILE)
    if record.architecture not in architectures:
        raise UserError(f"{path} adapts a '{record.architecture}' model; this needs '{' or '.join(architectures)}'")
    return Adapter(path, record)


def refuse_adapter(folder: Path) -> None:
    """Say what to do with an adapter folder where a whole model is wanted.

    Raises:
        UserError: ``folder`` holds an adapter.
    """
    if (folder / CONFIG_FILE).is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter, not a whole model; ask it with --adapter, or merge it into its base model: "
            f"longvid merge {folder} --out FOLDER"
        )


def _read_record(path: Path) -> AdapterRecord:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); export the adapter again") from error
    known = {field.name for field in fields(AdapterRecord)}
    if not isinstance(values, dict) or set(values) != known:
        raise UserError(f"{path}: its keys must be {', '.join(sorted(known))}; export the adapter again")
    return AdapterRecord(**values)
