"""The quantizer checkpoint: ``kv_quant.safetensors`` with the parameters, ``kv_quant_config.json`` with all the rest.

Reading is strict: a field that is missing, unknown or of the wrong type is refused, as are a tensor too many or too
few, tensors of another shape or other bytes than the config says, another model and another rotation. A folder is
written whole or not at all.
"""

import dataclasses
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longvid_train import __version__
from longvid_train.errors import UserError
from longvid_train.files import atomic_folder, sha256_file, write_json
from longvid_train.kvcache.policy import SCHEMES, AnyScheme, CachePolicy
from longvid_train.kvcache.quantizer import CacheShape, LayerError, LayerLargest, LayerParameters, Quantizer
from longvid_train.kvcache.rotation import Rotation
from longvid_train.kvcache.scheme import Scheme

FORMAT_VERSION = 1
TENSORS_NAME = "kv_quant.safetensors"
CONFIG_NAME = "kv_quant_config.json"

_FIELDS = (
    "format_version",
    "model",
    "rope",
    "adaptation",
    "policy",
    "shape",
    "layers",
    "calibration",
    "verdict",
    "versions",
    "tensors_sha256",
)


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model a quantizer is for.

    Attributes:
        model_id: folder or hub name, for people.
        revision: of the hub name, or empty.
        config_hash: tells models apart; the caller computes it alike when saving and when loading.
    """

    model_id: str
    revision: str
    config_hash: str


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """What a quantizer was calibrated on.

    Attributes:
        set_hash: of the calibration manifest.
        samples: prompts read.
        tokens: tokens observed.
        sample_tokens: tokens kept for fitting.
        seed: of the sample of tokens.
    """

    set_hash: str
    samples: int
    tokens: int
    sample_tokens: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class QuantizerRecord:
    """What is stored beside a quantizer.

    Attributes:
        model: which model.
        adaptation: settings the model ran under; empty for none.
        calibration: ``None`` for a policy without static parameters.
        verdict: of the safety gate: numbers by name; empty before it has run.
    """

    model: ModelIdentity
    adaptation: dict[str, Any]
    calibration: CalibrationRecord | None
    verdict: dict[str, Any]


def save_quantizer(folder: Path, quantizer: Quantizer, record: QuantizerRecord) -> None:
    """Write both files to a new ``folder``, or nothing.

    Raises:
        UserError: the folder holds files.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder; name a new one")
    with atomic_folder(folder) as temporary:
        tensors_file = temporary / TENSORS_NAME
        save_file(_tensors(quantizer), tensors_file)
        tensors_file.chmod(0o644)
        write_json(temporary / CONFIG_NAME, _config(quantizer, record, sha256_file(tensors_file)))


def load_quantizer(
    folder: Path, *, model: ModelIdentity, shape: CacheShape, rotation: Rotation | None
) -> tuple[Quantizer, QuantizerRecord]:
    """Read a quantizer for a model.

    Args:
        folder: of the checkpoint.
        model: the model at hand; its ``config_hash`` must be the stored one, its name may differ.
        shape: of its cache.
        rotation: of its decoder, a window installed on it included; ``None`` where each input has its own, which the
            caller compares with that of the quantizer.

    Raises:
        UserError: a file is missing, broken or of another format; the model, shape or rotation is another, naming both.
    """
    config = _read_config(folder / CONFIG_NAME)
    try:
        record, policy, stored_shape = _record(config), _policy(config["policy"]), CacheShape(**config["shape"])
        errors = tuple(LayerError(**entry["error"]) for entry in config["layers"] if entry["error"] is not None)
        largest = _largest(config)
        scaling = None if config["rope"] is None else float(config["rope"]["attention_scaling"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / CONFIG_NAME}: a field is missing, unknown or wrong ({error}); save it again"
        ) from error
    _check_identity(folder, record.model, model)
    if stored_shape != shape:
        raise UserError(f"{folder} is for {stored_shape}, the model has {shape}; calibrate for this model")
    tensors = _read_tensors(folder / TENSORS_NAME, config["tensors_sha256"])
    inv_freq = tensors.pop("rope.inv_freq", None)
    if (inv_freq is None) != (scaling is None):
        raise UserError(f"{folder}: only one of both files holds a rotation; save it again")
    stored_rotation = None if inv_freq is None or scaling is None else Rotation(inv_freq, scaling)
    different = None if stored_rotation is None or rotation is None else stored_rotation.differs(rotation)
    if different is not None:
        raise UserError(
            f"{folder} was calibrated under another rotary embedding than the model's ({different}); "
            "use the same window, or calibrate again"
        )
    layers = tuple(_layer_parameters(folder, tensors, layer, policy, stored_shape) for layer in range(shape.layers))
    if tensors:
        raise UserError(f"{folder / TENSORS_NAME}: unknown tensor {sorted(tensors)[0]}; save it again")
    for what, known in (("errors", errors), ("largest numbers", largest)):
        if known and len(known) != shape.layers:
            raise UserError(f"{folder / CONFIG_NAME}: {what} of {len(known)} of {shape.layers} layers; save it again")
    quantizer = Quantizer(
        policy=policy, shape=shape, rotation=stored_rotation, layers=layers, errors=errors, largest=largest
    )
    return quantizer, record


def stored_policy(folder: Path, *, model: ModelIdentity | None) -> tuple[CachePolicy, CacheShape]:
    """The settings of a checkpoint and the cache it is for, from its config alone: enough to count bytes.

    Args:
        folder: of the checkpoint.
        model: the model at hand; ``None`` where its weights are not here to tell.

    Raises:
        UserError: the config is missing, broken or of another format, or the model is another, naming both.
    """
    config = _read_config(folder / CONFIG_NAME)
    try:
        policy, shape, stored = _policy(config["policy"]), CacheShape(**config["shape"]), _record(config).model
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / CONFIG_NAME}: a field is missing, unknown or wrong ({error}); save it again"
        ) from error
    if model is not None:
        _check_identity(folder, stored, model)
    return policy, shape


def runtime_versions() -> dict[str, str]:
    """What computes keys and values here, by name."""
    return {
        "longvid-train": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _tensors(quantizer: Quantizer) -> dict[str, torch.Tensor]:
    tensors = {
        f"layers.{layer}.{side}.{name}": tensor.contiguous()
        for layer, parameters in enumerate(quantizer.layers)
        for side, named in (("keys", parameters.keys), ("values", parameters.values))
        for name, tensor in named.items()
    }
    if quantizer.rotation is not None:
        tensors["rope.inv_freq"] = quantizer.rotation.inv_freq.cpu().contiguous()
    return tensors


def _config(quantizer: Quantizer, record: QuantizerRecord, tensors_sha256: str) -> dict[str, Any]:
    rotation, policy = quantizer.rotation, quantizer.policy
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(record.model),
        "rope": None
        if rotation is None
        else {"attention_scaling": rotation.scaling, "fingerprint": rotation.fingerprint()},
        "adaptation": record.adaptation,
        "policy": {
            **{field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)},
            "keys": _scheme_settings(policy.keys),
            "values": _scheme_settings(policy.values),
            "protected_layers": list(policy.protected_layers),
        },
        "shape": dataclasses.asdict(quantizer.shape),
        "layers": [_layer_config(quantizer, layer) for layer in range(quantizer.shape.layers)],
        "calibration": None if record.calibration is None else dataclasses.asdict(record.calibration),
        "verdict": record.verdict,
        "versions": runtime_versions(),
        "tensors_sha256": tensors_sha256,
    }
    assert tuple(values) == _FIELDS
    return values


def _layer_config(quantizer: Quantizer, layer: int) -> dict[str, Any]:
    keys, values = quantizer.schemes(layer)
    error = dataclasses.asdict(quantizer.errors[layer]) if quantizer.errors else None
    return {
        "layer": layer,
        "keys": _scheme_words(keys),
        "values": _scheme_words(values),
        "error": error,
        "largest": dataclasses.asdict(quantizer.largest[layer]) if quantizer.largest else None,
    }


def _scheme_words(scheme: Scheme) -> dict[str, Any]:
    """What another program needs to read the tensors; derived from the policy, and not read back."""
    return {
        "kind": scheme.kind,
        "bits": scheme.bits,
        "granularity": scheme.granularity,
        "symmetric": scheme.symmetric,
        "rotary": scheme.rotary,
        "dequantization": scheme.formula,
    }


def _scheme_settings(scheme: AnyScheme) -> dict[str, Any]:
    return {"kind": scheme.kind, **dataclasses.asdict(scheme)}


def _policy(stored: dict[str, Any]) -> CachePolicy:
    settings = dict(stored)
    for side in ("keys", "values"):
        scheme = dict(settings[side])
        settings[side] = SCHEMES[scheme.pop("kind")](**scheme)
    settings["protected_layers"] = tuple(settings["protected_layers"])
    return CachePolicy(**settings)


def _record(config: dict[str, Any]) -> QuantizerRecord:
    calibration = config["calibration"]
    return QuantizerRecord(
        model=ModelIdentity(**config["model"]),
        adaptation=dict(config["adaptation"]),
        calibration=None if calibration is None else CalibrationRecord(**calibration),
        verdict=dict(config["verdict"]),
    )


def _largest(config: dict[str, Any]) -> tuple[LayerLargest, ...]:
    return tuple(LayerLargest(**entry["largest"]) for entry in config["layers"] if entry["largest"] is not None)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); name the folder of a quantizer checkpoint") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format_version is {version}, this program reads {FORMAT_VERSION}; calibrate again")
    if sorted(config) != sorted(_FIELDS):
        wrong = sorted(set(config) ^ set(_FIELDS))[0]
        raise UserError(f"{path}: field '{wrong}' is missing or unknown; save it again")
    return dict(config)


def _read_tensors(path: Path, expected_sha256: str) -> dict[str, torch.Tensor]:
    try:
        found = sha256_file(path)
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); name the folder of a quantizer checkpoint") from error
    if found != expected_sha256:
        raise UserError(f"{path}: SHA-256 is {found[:12]}, {CONFIG_NAME} says {expected_sha256[:12]}; save it again")
    return dict(tensors)


def _check_identity(folder: Path, stored: ModelIdentity, model: ModelIdentity) -> None:
    if stored.config_hash != model.config_hash:
        raise UserError(
            f"{folder} was calibrated for {stored.model_id} (config {stored.config_hash[:12]}), the model is "
            f"{model.model_id} (config {model.config_hash[:12]}); calibrate for this model"
        )


def _layer_parameters(
    folder: Path, tensors: dict[str, torch.Tensor], layer: int, policy: CachePolicy, shape: CacheShape
) -> LayerParameters:
    sides = []
    for side, scheme in zip(("keys", "values"), policy.schemes(layer, shape.layers), strict=True):
        expected = scheme.parameter_shapes(shape.heads, shape.head_dim, separate=policy.separate_visual)
        named = {}
        for name, dims in expected.items():
            full = f"layers.{layer}.{side}.{name}"
            tensor = tensors.pop(full, None)
            if tensor is None or tuple(tensor.shape) != dims or tensor.dtype != torch.float32:
                found = "missing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
                raise UserError(
                    f"{folder / TENSORS_NAME}: {full} is {found}, '{scheme.kind}' needs {dims} float32; save it again"
                )
            named[name] = tensor
        sides.append(named)
    return LayerParameters(*sides)
