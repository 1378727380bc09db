"""Which model a quantizer is for: the checkpoint's configuration and weights, and the adapter in it."""

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download

from longvid_train.files import sha256_file
from longvid_train.kvcache.checkpoint import ModelIdentity
from longvid_train.models.adapter import WEIGHTS_FILE
from longvid_train.models.fingerprint import fingerprint


def model_identity(source: str | Path, *, adapter: Path | None = None) -> ModelIdentity:
    """The identity of a checkpoint, read without loading it; calibration stores it and loading compares it.

    ``config_hash`` covers ``config.json``, the weights as ``fingerprint`` does, and an adapter's weights: two trainings
    of one architecture keep different keys and values.

    Args:
        source: a folder, or a hub id (``str``), whose files are downloaded if they are not here.
        adapter: folder of an adapter that is in the model.

    Raises:
        UserError: ``config.json`` or weights are missing or broken.
    """
    folder, revision = Path(source), ""
    if not folder.is_dir():
        folder = Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))
        revision = folder.name
    digest, name = fingerprint(folder), str(source)
    if adapter is not None:
        weights = sha256_file(adapter / WEIGHTS_FILE)
        digest, name = hashlib.sha256(f"{digest} {weights}".encode()).hexdigest(), f"{source} with {adapter}"
    return ModelIdentity(model_id=name, revision=revision, config_hash=digest)
