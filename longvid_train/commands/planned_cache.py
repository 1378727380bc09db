"""Which cache ``longvid cost`` plans: the command line's, else the adaptation's, else transformers' own."""

from pathlib import Path

from longvid_train.adaptation.cache import CacheChoice
from longvid_train.cost.coded_kv import CodedKv, check_same_shape, coded_kv, shape_of
from longvid_train.cost.decoder import DecoderShape
from longvid_train.cost.kv_storage import KvStorage, PlainKv
from longvid_train.errors import UserError, nearest
from longvid_train.kvcache.checkpoint import stored_policy
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.schemes.static_channel import StaticChannel
from longvid_train.models.identity import model_identity

PLAIN_BITS = 16


def planned_cache(
    source: str,
    decoder: DecoderShape,
    *,
    bits: int | None,
    named: str | None,
    chosen: CacheChoice | None,
    value_bytes: int,
) -> KvStorage:
    """The cache to plan.

    Args:
        source: of the model. A folder with weights must be the model that a quantizer was calibrated for; of a short
            name, a hub id or a mere configuration only the shape is known.
        decoder: of the model.
        bits: of ``--kv-bits``; codes alone, without sink and recent windows.
        named: of ``--kv``: a preset, or the folder of a quantizer.
        chosen: by the adaptation.
        value_bytes: of a number as the model makes it.

    Raises:
        UserError: no such preset or folder, or a quantizer for another model.
    """
    if bits is not None:
        return PlainKv(value_bytes=value_bytes) if bits == PLAIN_BITS else _codes_alone(decoder, bits, value_bytes)
    if named is not None:
        return _named(source, decoder, named, value_bytes)
    if chosen is None:
        return PlainKv(value_bytes=value_bytes)
    if chosen.quantizer is not None:
        return _quantizer(source, decoder, Path(chosen.quantizer), value_bytes)
    return coded_kv(chosen.policy(), shape_of(decoder), value_bytes=value_bytes)


def _codes_alone(decoder: DecoderShape, bits: int, value_bytes: int) -> CodedKv:
    scheme = StaticChannel(bits=bits, search="minmax")
    policy = CachePolicy(keys=scheme, values=scheme, sink_tokens=0, recent_tokens=0, flush_tokens=1)
    return coded_kv(policy, shape_of(decoder), value_bytes=value_bytes)


def _named(source: str, decoder: DecoderShape, named: str, value_bytes: int) -> CodedKv:
    if named in PRESETS:
        return coded_kv(PRESETS[named], shape_of(decoder), value_bytes=value_bytes)
    if not Path(named).is_dir():
        hint = nearest(named, list(PRESETS)) or "."
        raise UserError(
            f"--kv '{named}' is neither a folder nor a preset{hint} Use one of {', '.join(PRESETS)}, or the folder of "
            "a quantizer"
        )
    return _quantizer(source, decoder, Path(named), value_bytes)


def _quantizer(source: str, decoder: DecoderShape, folder: Path, value_bytes: int) -> CodedKv:
    has_weights = any(Path(source).glob("*.safetensors"))
    policy, shape = stored_policy(folder, model=model_identity(source) if has_weights else None)
    check_same_shape(str(folder), shape, decoder)
    return coded_kv(policy, shape, value_bytes=value_bytes)
